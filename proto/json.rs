//! Messages as proto3 JSON, with the field names of the `.proto` files, and with every field printed: an empty list is `[]`.

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(crate::DESCRIPTORS).expect("build.rs wrote the descriptors of this very build")
});

/// One line of JSON, or an indented text when `pretty`. 64-bit integers are strings, as proto3 JSON has them; a message that is not set is left out.
pub fn to_string<M: Message + Name>(message: &M, pretty: bool) -> String {
    let descriptor =
        POOL.get_message_by_name(&M::full_name()).expect("every message of this crate is in its descriptors");
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .expect("a message decodes with its own descriptor");
    let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false);
    let mut out = Vec::new();
    let result = if pretty {
        dynamic.serialize_with_options(&mut json_writer::pretty(&mut out), &options)
    } else {
        dynamic.serialize_with_options(&mut json_writer::compact(&mut out), &options)
    };
    result.expect("writing JSON to memory cannot fail");
    String::from_utf8(out).expect("JSON is UTF-8")
}

mod json_writer {
    use serde_json::Serializer;
    use serde_json::ser::{CompactFormatter, PrettyFormatter};

    pub(super) fn pretty(out: &mut Vec<u8>) -> Serializer<&mut Vec<u8>, PrettyFormatter<'static>> {
        Serializer::pretty(out)
    }

    pub(super) fn compact(out: &mut Vec<u8>) -> Serializer<&mut Vec<u8>, CompactFormatter> {
        Serializer::new(out)
    }
}

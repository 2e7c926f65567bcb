//! The contract as a text: a change of the interface is a visible change of `tests/golden/descriptors.txt`.
//! `UPDATE_GOLDEN=1` writes the file anew.

use std::fmt::Write as _;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use vaultferry_tests::workspace;

#[test]
fn the_contract_is_the_golden_one() {
    let set = FileDescriptorSet::decode(vaultferry_proto::DESCRIPTORS).expect("the descriptors decode");
    let text = listing(&set);
    let path = workspace().join("tests/golden/descriptors.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).expect("write the golden file");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    if let Some((line, (old, new))) = pairs(&golden, &text).enumerate().find(|(_, (old, new))| old != new) {
        panic!(
            "line {} of tests/golden/descriptors.txt: {old:?}, the contract says {new:?}.\n\
             If the change is meant (v1 only grows), run with UPDATE_GOLDEN=1 and commit the file.",
            line + 1
        );
    }
}

fn pairs<'a>(old: &'a str, new: &'a str) -> impl Iterator<Item = (Option<&'a str>, Option<&'a str>)> {
    let count = old.lines().count().max(new.lines().count());
    let (mut old, mut new) = (old.lines(), new.lines());
    (0..count).map(move |_| (old.next(), new.next()))
}

fn listing(set: &FileDescriptorSet) -> String {
    let mut files: Vec<_> = set.file.iter().filter(|file| file.package().starts_with("vaultferry.")).collect();
    files.sort_by_key(|file| file.name());
    let mut out = String::new();
    for file in files {
        let _ = writeln!(out, "file {} package {}", file.name(), file.package());
        for service in &file.service {
            let _ = writeln!(out, "service {}", service.name());
            for method in &service.method {
                let stream = if method.server_streaming() { "stream " } else { "" };
                let client = if method.client_streaming() { "stream " } else { "" };
                let (input, output) = (method.input_type(), method.output_type());
                let _ = writeln!(out, "  rpc {}({client}{input}) returns ({stream}{output})", method.name());
            }
        }
        file.message_type.iter().for_each(|message| write_message(&mut out, "", message));
        file.enum_type.iter().for_each(|item| write_enum(&mut out, "", item));
    }
    out
}

fn write_message(out: &mut String, outer: &str, message: &DescriptorProto) {
    let name = format!("{outer}{}", message.name());
    let _ = writeln!(out, "message {name}");
    let mut fields: Vec<_> = message.field.iter().collect();
    fields.sort_by_key(|field| field.number());
    for field in fields {
        let of = field.oneof_index.and_then(|index| message.oneof_decl.get(index as usize));
        let oneof = of.map(|oneof| format!(" oneof {}", oneof.name())).unwrap_or_default();
        let _ = writeln!(out, "  {} {} = {}{oneof}", type_name(field), field.name(), field.number());
    }
    let inner = format!("{name}.");
    message.nested_type.iter().for_each(|nested| write_message(out, &inner, nested));
    message.enum_type.iter().for_each(|item| write_enum(out, &inner, item));
}

fn write_enum(out: &mut String, outer: &str, item: &EnumDescriptorProto) {
    let _ = writeln!(out, "enum {outer}{}", item.name());
    for value in &item.value {
        let _ = writeln!(out, "  {} = {}", value.name(), value.number());
    }
}

fn type_name(field: &FieldDescriptorProto) -> String {
    let name = match field.r#type() {
        Type::Message | Type::Enum | Type::Group => field.type_name().to_owned(),
        simple => simple.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    if field.label() == Label::Repeated { format!("repeated {name}") } else { name }
}

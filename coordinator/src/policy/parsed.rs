//! Documents that were parsed already: a fleet follows a few policies, and the agent asks for them with every look at an instance.
//!
//! Parsing depends on nothing but the text, so nobody can tell a remembered document from one that was parsed just now.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use vaultferry_proto::Problem;

use super::{Document, parse};

/// Documents that are remembered; some KiB each. More versions than these are in use nowhere, and then it only costs time.
const REMEMBERED: usize = 256;

type Documents = Option<HashMap<String, Arc<Document>>>;

static DOCUMENTS: Mutex<Documents> = Mutex::new(None);

/// The same as [`parse`], for texts that come again and again. Faulty ones are parsed every time.
pub fn parsed(text: &str) -> Result<Arc<Document>, Problem> {
    let lock = || DOCUMENTS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = lock().as_ref().and_then(|documents| documents.get(text).cloned());
    if let Some(document) = known {
        return Ok(document);
    }
    let document = Arc::new(parse(text)?);
    let mut guard = lock();
    let documents = guard.get_or_insert_default();
    if documents.len() >= REMEMBERED {
        documents.clear();
    }
    documents.insert(text.to_owned(), document.clone());
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::super::default_document;
    use super::*;

    #[test]
    fn a_text_is_parsed_once_and_a_faulty_one_is_refused_each_time() {
        let text = default_document("postgres", "Asia/Seoul");
        let first = parsed(&text).expect("valid");
        assert_eq!(first.time_zone_name, "Asia/Seoul");
        // Other tests of this process may have pushed it out meanwhile; then it is parsed anew, and is the same.
        assert_eq!(parsed(&text).expect("valid").name, first.name);
        let other = parsed(&text.replace("Asia/Seoul", "Europe/Berlin")).expect("valid");
        assert_eq!(other.time_zone_name, "Europe/Berlin");
        for _ in 0..2 {
            parsed("name = 3").expect_err("it is no policy");
        }
    }
}

//! What `lvs --reportformat json` says.

use serde::{Deserialize, Deserializer};

/// What is asked for.
pub(super) const FIELDS: &str =
    "vg_name,lv_name,lv_attr,lv_size,vg_free,origin,pool_lv,lv_tags,data_percent,lv_kernel_major,lv_kernel_minor";

/// A logical volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Volume {
    pub(super) vg_name: String,
    pub(super) lv_name: String,
    /// Ten letters, see lvs(8).
    pub(super) lv_attr: String,
    /// Bytes.
    #[serde(deserialize_with = "number")]
    pub(super) lv_size: u64,
    /// Bytes.
    #[serde(deserialize_with = "number")]
    pub(super) vg_free: u64,
    /// The volume that a snapshot is of, or nothing.
    pub(super) origin: String,
    /// The pool of a thin volume, or nothing.
    pub(super) pool_lv: String,
    /// With commas between.
    lv_tags: String,
    /// Of a snapshot or a pool, how full it is; otherwise nothing.
    data_percent: String,
    pub(super) lv_kernel_major: String,
    pub(super) lv_kernel_minor: String,
}

/// All values are texts.
fn number<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
}

impl Volume {
    /// As LVM's programs take it.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.vg_name, self.lv_name)
    }

    /// One of the letters, counted from 0.
    fn letter(&self, index: usize) -> u8 {
        self.lv_attr.as_bytes().get(index).copied().unwrap_or(b'-')
    }

    pub(super) fn is_thin(&self) -> bool {
        self.letter(0) == b'V'
    }

    /// A plain, cached or RAID volume, one with snapshots already, or a thin one; active, and no thick snapshot itself.
    pub(super) fn can_be_origin(&self) -> bool {
        matches!(self.letter(0), b'-' | b'o' | b'V' | b'C' | b'r' | b'R' | b'm' | b'M') && self.letter(4) == b'a'
    }

    /// A thick snapshot that has overflowed, suspended or not.
    pub(super) fn is_invalid(&self) -> bool {
        matches!(self.letter(4), b'I' | b'S')
    }

    pub(super) fn is_open(&self) -> bool {
        self.letter(5) == b'o'
    }

    pub(super) fn has_tag(&self, tag: &str) -> bool {
        self.lv_tags.split(',').any(|own| own == tag)
    }

    pub(super) fn used_per_cent(&self) -> Option<f64> {
        self.data_percent.parse().ok()
    }
}

#[derive(Deserialize)]
struct Output {
    report: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    lv: Vec<Volume>,
}

pub(super) fn read(output: &[u8]) -> Result<Vec<Volume>, serde_json::Error> {
    let output: Output = serde_json::from_slice(output)?;
    Ok(output.report.into_iter().flat_map(|part| part.lv).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As LVM 2.03 writes it: a plain volume with a snapshot that has overflowed, and a thin one.
    const SEEN: &str = r#"
  {
      "report": [
          {
              "lv": [
                  {"vg_name":"vg", "lv_name":"data", "lv_attr":"owi-a-s---", "lv_size":"104857600", "vg_free":"146800640", "origin":"", "pool_lv":"", "lv_tags":"", "data_percent":"", "lv_kernel_major":"253", "lv_kernel_minor":"0"},
                  {"vg_name":"vg", "lv_name":"vaultferry_0a_data", "lv_attr":"sri-I-s---", "lv_size":"4194304", "vg_free":"146800640", "origin":"data", "pool_lv":"", "lv_tags":"nightly,vaultferry", "data_percent":"100.00", "lv_kernel_major":"253", "lv_kernel_minor":"4"},
                  {"vg_name":"vg", "lv_name":"thin", "lv_attr":"Vwi-aotz--", "lv_size":"52428800", "vg_free":"146800640", "origin":"", "pool_lv":"pool", "lv_tags":"", "data_percent":"0.00", "lv_kernel_major":"253", "lv_kernel_minor":"7"}
              ]
          }
      ]
      ,
      "log": [
      ]
  }
"#;

    #[test]
    fn a_report_is_read() {
        let volumes = read(SEEN.as_bytes()).expect("readable");
        let [data, snapshot, thin] = volumes.as_slice() else { panic!("{volumes:?}") };
        assert!(data.can_be_origin() && !data.is_thin() && !data.is_open() && data.used_per_cent().is_none());
        assert_eq!((data.lv_size, data.full_name().as_str()), (104_857_600, "vg/data"));
        assert!(snapshot.is_invalid() && !snapshot.can_be_origin() && snapshot.has_tag("vaultferry"));
        assert!(!snapshot.has_tag("vault") && snapshot.used_per_cent() == Some(100.0));
        assert!(thin.is_thin() && thin.can_be_origin() && thin.is_open());
        assert!(read(b"{}").is_err());
        assert!(read(b"{\"report\":[{}]}").expect("no volumes").is_empty());
    }
}

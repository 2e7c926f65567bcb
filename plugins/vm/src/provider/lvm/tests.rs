//! With stand-ins for LVM's programs that keep volumes as files: what is asked of them, in which order, and what their answers do. LVM itself
//! runs in a guest only (`vm-lvm.py` of the lab shows the answers that these stand-ins give).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use super::super::release;
use super::*;

const LVS: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
printf '{"report":[{"lv":['
between=
for volume in volumes/*; do
    text=$(cat "$volume" 2>/dev/null) || continue
    printf '%s%s' "$between" "$text"
    between=,
done
printf ']}]}\n'
"#;

const LVCREATE: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
printf 'lvcreate %s\n' "$*" >>log
if [ -e fail ]; then echo 'Volume group "vg" has insufficient free space' >&2; exit 5; fi
while [ $# -gt 1 ]; do if [ "$1" = --name ]; then name=$2; fi; shift; done
origin=${1#*/}
cp "devices/vg/$origin" "devices/vg/$name"
attr=sri-a-s---
if [ "$origin" = thin ]; then attr=Vri-a-tz-k; fi
printf '{"vg_name":"vg","lv_name":"%s","lv_attr":"%s","lv_size":"4096","vg_free":"0","origin":"%s","pool_lv":"","lv_tags":"vaultferry","data_percent":"1.50","lv_kernel_major":"9","lv_kernel_minor":"9"}' "$name" "$attr" "$origin" >"volumes/$name"
"#;

const LVREMOVE: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
printf 'lvremove %s\n' "$*" >>log
while [ $# -gt 1 ]; do shift; done
rm "devices/$1" "volumes/${1#*/}"
"#;

struct Machine {
    dir: tempfile::TempDir,
    lvm: Lvm,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, text) in [("lvs", LVS), ("lvcreate", LVCREATE), ("lvremove", LVREMOVE)] {
            let path = dir.path().join(name);
            fs::write(&path, text).expect("a program");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        }
        fs::create_dir_all(dir.path().join("devices/vg")).expect("a folder");
        fs::create_dir(dir.path().join("volumes")).expect("a folder");
        fs::write(dir.path().join("log"), "").expect("a log");
        let lvm = Lvm::with_folders(dir.path(), dir.path().join("devices"));
        Self { dir, lvm }
    }

    /// The number of its device is 0:0 for `number` "0", as a file's is.
    fn volume(&self, name: &str, attr: &str, free: &str, (origin, tags): (&str, &str), used: &str, number: &str) {
        let text = format!(
            r#"{{"vg_name":"vg","lv_name":"{name}","lv_attr":"{attr}","lv_size":"1073741824","vg_free":"{free}","origin":"{origin}","pool_lv":"pool","lv_tags":"{tags}","data_percent":"{used}","lv_kernel_major":"{number}","lv_kernel_minor":"{number}"}}"#
        );
        fs::write(self.dir.path().join("volumes").join(name), text).expect("a volume");
        fs::write(self.dir.path().join("devices/vg").join(name), format!("the bytes of {name}")).expect("a device");
    }

    fn disk(&self, name: &str) -> Disk {
        Disk { name: "disk0".into(), path: self.dir.path().join("devices/vg").join(name) }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).expect("the log")
    }

    fn volumes(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.lvm.volumes().expect("lvs").into_iter().map(|volume| volume.lv_name).collect();
        names.sort();
        names
    }

    async fn taken(&self, disk: &str) -> Result<Snapshot, Problem> {
        let mut prepared = self.lvm.prepare("0a1b", &[self.disk(disk)], None, &CancellationToken::new()).await?;
        prepared.take()?;
        prepared.open().await
    }
}

#[tokio::test]
async fn a_thick_snapshot_is_taken_read_and_removed() {
    let machine = Machine::new();
    machine.volume("data", "-wi-ao----", "10737418240", ("", ""), "", "0");
    let snapshot = machine.taken("data").await.expect("a snapshot");
    let size = "the bytes of data".len() as u64;
    assert_eq!((snapshot.disks[0].size, snapshot.disks[0].name.as_str()), (size, "disk0"));
    assert!(matches!(snapshot.disks[0].changes, Changes::Unknown(_)));
    assert_eq!(machine.volumes(), ["data", "vaultferry_0a1b_data"]);
    assert_eq!(release(snapshot, true).await.expect("released"), None);
    assert_eq!(machine.volumes(), ["data"]);
    let expected = "lvcreate --snapshot --yes --name vaultferry_0a1b_data --addtag vaultferry --permission r --size 213909504b vg/data\n\
                    lvremove --yes vg/vaultferry_0a1b_data\n";
    assert_eq!(machine.log(), expected);
}

#[tokio::test]
async fn a_thin_snapshot_is_activated_and_needs_a_pool_with_room() {
    let machine = Machine::new();
    machine.volume("thin", "Vwi-aotz--", "0", ("", ""), "3.00", "0");
    machine.volume("pool", "twi-aotz--", "0", ("", ""), "50.00", "7");
    let snapshot = machine.taken("thin").await.expect("a snapshot");
    release(snapshot, false).await.expect("released");
    assert!(machine.log().contains("--permission r --setactivationskip n vg/thin\n"), "{}", machine.log());
    machine.volume("pool", "twi-aotz--", "0", ("", ""), "97.10", "7");
    let problem = machine.taken("thin").await.expect_err("a full pool");
    assert!(problem.message.contains("vg/pool"), "{problem:?}");
}

#[tokio::test]
async fn an_overflowed_snapshot_fails_the_job_and_is_removed_all_the_same() {
    for (attr, used) in [("sri-I-s---", "100.00"), ("sri-a-s---", "100.00"), ("sri-I-s---", "7.00"), ("sri-a-s---", "")]
    {
        let machine = Machine::new();
        machine.volume("data", "-wi-ao----", "10737418240", ("", ""), "", "0");
        let snapshot = machine.taken("data").await.expect("a snapshot");
        machine.volume("vaultferry_0a1b_data", attr, "0", ("data", "vaultferry"), used, "9");
        let problem = release(snapshot, false).await.expect_err("what was read is worthless");
        assert_eq!(problem.reason, Reason::SourceChanged, "{attr} {used}");
        assert_eq!(machine.volumes(), ["data"]);
    }
}

#[tokio::test]
async fn leftovers_are_told_from_what_others_have_made() {
    let machine = Machine::new();
    machine.volume("data", "owi-aos---", "10737418240", ("", ""), "", "0");
    machine.volume("vaultferry_01_data", "sri-a-s---", "0", ("data", "vaultferry"), "2.00", "9");
    machine.volume("vaultferry_02_data", "sri-I-s---", "0", ("data", "x,vaultferry"), "100.00", "9");
    // In use, without the tag, with another name, of another volume.
    machine.volume("vaultferry_03_data", "sri-aos---", "0", ("data", "vaultferry"), "2.00", "9");
    machine.volume("vaultferry_04_data", "sri-a-s---", "0", ("data", "vaultferry2"), "2.00", "9");
    machine.volume("nightly", "sri-a-s---", "0", ("data", "vaultferry"), "2.00", "9");
    machine.volume("vaultferry_05_other", "sri-a-s---", "0", ("other", "vaultferry"), "2.00", "9");
    let removed = machine.lvm.remove_leftovers(&[machine.disk("data")], &[]).await.expect("removed");
    assert_eq!(removed, ["vg/vaultferry_01_data", "vg/vaultferry_02_data"]);
    let left = ["data", "nightly", "vaultferry_03_data", "vaultferry_04_data", "vaultferry_05_other"];
    assert_eq!(machine.volumes(), left);
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_anything_is_made() {
    let machine = Machine::new();
    machine.volume("data", "-wi-ao----", "1048576", ("", ""), "", "0");
    let problem = machine.taken("data").await.expect_err("no room");
    assert!(problem.message.contains("1 MiB free"), "{problem:?}");
    machine.volume("data", "swi-aos---", "10737418240", ("other", ""), "1.00", "0");
    assert_eq!(machine.taken("data").await.expect_err("a snapshot").reason, Reason::SnapshotUnsupported);
    machine.volume("data", "-wi-ao----", "10737418240", ("", ""), "", "5");
    assert_eq!(machine.taken("data").await.expect_err("another device").reason, Reason::SnapshotUnsupported);
    let second = Disk { name: "disk1".into(), ..machine.disk("data") };
    let two = machine.lvm.prepare("0a1b", &[machine.disk("data"), second], None, &CancellationToken::new()).await;
    assert_eq!(two.map(drop).expect_err("two volumes").reason, Reason::SnapshotUnsupported);
    assert_eq!(machine.log(), "");

    machine.volume("data", "-wi-ao----", "10737418240", ("", ""), "", "0");
    fs::write(machine.dir.path().join("fail"), "").expect("a reason to fail");
    let problem = machine.taken("data").await.expect_err("lvcreate fails");
    assert!(problem.message.contains("insufficient free space"), "{problem:?}");
    assert!(!machine.log().contains("lvremove"), "there is nothing to remove: {}", machine.log());
}

#[tokio::test]
async fn a_snapshot_that_nobody_wants_any_more_is_removed() {
    let machine = Machine::new();
    machine.volume("data", "-wi-ao----", "10737418240", ("", ""), "", "0");
    drop(machine.taken("data").await.expect("a snapshot"));
    let begun = Instant::now();
    while machine.volumes() != ["data"] {
        assert!(begun.elapsed() < Duration::from_secs(20), "it is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

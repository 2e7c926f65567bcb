use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use super::*;

const SAMPLE: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 27 7:1 / /srv/with\\040a\\040blank\\134 rw,noatime shared:2 master:1 propagate_from:3 - xfs /dev/loop1 rw,attr2
31 27 0:40 /sub /data rw - btrfs /dev/loop2 rw,subvol=/sub
32 31 8:1 / /data/inner/deep rw - ext4 /dev/sda1 rw
33 27 8:1 /dir /bound ro - ext4 /dev/sda1 rw
34 27 8:2 / /cdrom rw - ext4 /dev/sda2 ro,errors=remount-ro
35 27 0:50 / /net rw - nfs4 server:/export rw
36 27 0:51 / /ssh rw - fuse.sshfs user@host: rw
37 27 0:52 / /tmp rw - tmpfs tmpfs rw
";

/// Paths are as they are written, and belong to the longest mount point that they begin with.
struct Model {
    table: Vec<Mount>,
    sys: tempfile::TempDir,
}

impl Model {
    fn new(table: &str) -> Self {
        let sys = tempfile::tempdir().expect("a folder");
        Self { table: parse(table.as_bytes()).expect("a table"), sys }
    }

    fn plan(&self, wanted: &[&str], images: &[&str]) -> Result<Vec<PathBuf>, Vec<String>> {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let planned = super::plan(&self.table, &paths(wanted), &paths(images), self)?;
        Ok(planned.into_iter().map(|mount| mount.mount_point).collect())
    }

    #[track_caller]
    fn refuses(&self, wanted: &[&str], images: &[&str], words: &str) {
        let faults = self.plan(wanted, images).expect_err("a refusal");
        assert!(faults.iter().any(|fault| fault.contains(words)), "{words:?} is not in {faults:?}");
    }

    /// A block device's folder, as /sys has it.
    fn device(&self, name: &str, number: &str, backing_file: Option<&str>) {
        let dir = self.sys.path().join("devices").join(name);
        fs::create_dir_all(&dir).expect("a folder");
        for (kind, link) in [("class/block", name), ("dev/block", number)] {
            let links = self.sys.path().join(kind);
            fs::create_dir_all(&links).expect("a folder");
            symlink(&dir, links.join(link)).expect("a link");
        }
        if let Some(file) = backing_file {
            fs::create_dir_all(dir.join("loop")).expect("a folder");
            fs::write(dir.join("loop/backing_file"), format!("{file}\n")).expect("a file");
        }
    }

    fn slave(&self, name: &str, of: &str) {
        let slaves = self.sys.path().join("devices").join(of).join("slaves");
        fs::create_dir_all(&slaves).expect("a folder");
        let link = slaves.join(name.replace('/', "!"));
        symlink(self.sys.path().join("devices").join(name), link).expect("a link");
    }
}

impl Machine for Model {
    fn mount_of(&self, path: &Path) -> io::Result<(PathBuf, u64)> {
        let holders = self.table.iter().filter(|mount| path.starts_with(&mount.mount_point));
        let deepest = holders.max_by_key(|mount| mount.mount_point.components().count());
        let mount = deepest.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok((path.to_path_buf(), mount.id))
    }

    fn sys(&self) -> &Path {
        self.sys.path()
    }
}

#[test]
fn the_table_is_read_with_its_optional_fields_and_escapes() {
    let table = parse(SAMPLE.as_bytes()).expect("a table");
    assert_eq!(table.len(), 10);
    let xfs = &table[2];
    assert_eq!(xfs.mount_point, Path::new("/srv/with a blank\\"));
    assert_eq!((xfs.id, xfs.device, xfs.kind.as_str()), (30, (7, 1), "xfs"));
    assert_eq!(xfs.source, Path::new("/dev/loop1"));
    let read_only: BTreeMap<_, _> = table.iter().map(|mount| (mount.id, mount.is_read_only)).collect();
    assert!(!read_only[&33], "a read-only mount of a file system that is written elsewhere");
    assert!(read_only[&34]);
    assert!(parse(b"27 1 254:0 / / rw,relatime shared:1 ext4 /dev/vda rw\n").is_err(), "the hyphen is missing");
    assert!(!read_table().expect("this machine's own").is_empty());
}

#[test]
fn what_lies_deeper_is_frozen_first_and_the_root_last() {
    let model = Model::new(SAMPLE);
    let order = model.plan(&["/", "/data", "/data/inner/deep"], &[]).expect("a plan");
    assert_eq!(order, [Path::new("/data/inner/deep"), Path::new("/data"), Path::new("/")]);
}

#[test]
fn a_file_system_with_two_mounts_is_frozen_once_at_its_deepest() {
    let model = Model::new(SAMPLE);
    let order = model.plan(&["/bound", "/", "/data", "/data/inner/deep", "/bound"], &[]).expect("a plan");
    assert_eq!(order, [Path::new("/data/inner/deep"), Path::new("/data"), Path::new("/")]);
    assert_eq!(model.plan(&["/bound"], &[]).expect("a plan"), [Path::new("/bound")]);
}

#[test]
fn the_root_is_last_by_whichever_name() {
    let model = Model::new(&format!("{SAMPLE}38 27 254:0 /home /srv/deep/below/home rw - ext4 /dev/vda rw\n"));
    let order = model.plan(&["/srv/deep/below/home", "/data"], &[]).expect("a plan");
    assert_eq!(order, [Path::new("/data"), Path::new("/srv/deep/below/home")]);
    let order = model.plan(&["/", "/srv/deep/below/home", "/data"], &[]).expect("a plan");
    assert_eq!(order, [Path::new("/data"), Path::new("/srv/deep/below/home")]);
}

#[test]
fn what_is_read_only_is_left_out() {
    let model = Model::new(SAMPLE);
    assert_eq!(model.plan(&["/cdrom", "/data"], &[]).expect("a plan"), [Path::new("/data")]);
    assert!(model.plan(&["/cdrom"], &[]).expect("a plan").is_empty());
}

#[test]
fn what_cannot_be_frozen_is_refused_with_its_reason() {
    let model = Model::new(SAMPLE);
    model.refuses(&["/net"], &[], "nfs4 mount: others write there too");
    model.refuses(&["/ssh"], &[], "fuse.sshfs mount");
    model.refuses(&["/tmp"], &[], "of the type tmpfs, which Linux cannot freeze");
    model.refuses(&["/data/folder"], &[], "is no mount point; it lies on /data");
    let faults = model.plan(&["/net", "/data", "/tmp"], &[]).expect_err("refusals");
    assert_eq!(faults.len(), 2, "all are told at once: {faults:?}");
}

#[test]
fn an_image_on_what_is_frozen_is_refused() {
    let model = Model::new(SAMPLE);
    model.refuses(&["/data"], &["/data/images/disk.raw"], "/data/images/disk.raw lies on /data");
    // Through another mount of the same file system, too.
    model.refuses(&["/data/inner/deep"], &["/bound/disk.raw"], "lies on /data/inner/deep");
    model.plan(&["/data/inner/deep"], &["/data/images/disk.raw"]).expect("another file system");
    // Through a loop device, too: copying the image writes to the file below.
    model.device("loop1", "7:1", Some("/bound/xfs.img"));
    model.refuses(&["/data/inner/deep"], &["/srv/with a blank\\/disk.raw"], "lies on /data/inner/deep");
}

#[test]
fn a_loop_mount_on_a_file_that_is_frozen_with_it_is_refused() {
    let model = Model::new(SAMPLE);
    model.device("loop1", "7:1", Some("/data/images/xfs.img"));
    let loop_mount = "/srv/with a blank\\";
    assert_eq!(model.plan(&[loop_mount], &[]).expect("the file's own file system goes on").len(), 1);
    model.refuses(&[loop_mount, "/data"], &[], "stands on the file /data/images/xfs.img, and /data");
}

#[test]
fn a_file_below_a_file_counts_too() {
    let model = Model::new(SAMPLE);
    // xfs in a file of a btrfs (whose number is made up) that lies in a file of the root.
    model.device("loop1", "7:1", Some("/data/images/xfs.img"));
    model.device("loop2", "7:2", Some("/var/btrfs.img"));
    model.refuses(&["/srv/with a blank\\", "/"], &[], "stands on the file /var/btrfs.img, and /,");
    model.refuses(&["/data", "/"], &[], "stands on the file /var/btrfs.img");
}

#[test]
fn partitions_and_mapped_devices_are_looked_through() {
    let model = Model::new(SAMPLE);
    // /dev/sda1 of the table is a mapping over a partition of a loop device here.
    model.device("sda1", "8:1", None);
    model.device("loop9", "7:9", Some("/data/images/lvm.img"));
    let partition = model.sys.path().join("devices/loop9/loop9p1");
    fs::create_dir_all(&partition).expect("a folder");
    fs::write(partition.join("partition"), "1\n").expect("a file");
    model.slave("loop9/loop9p1", "sda1");
    model.refuses(&["/bound", "/data"], &[], "stands on the file /data/images/lvm.img");
}

#[test]
fn all_devices_of_a_btrfs_are_looked_at() {
    let model = Model::new(SAMPLE);
    model.device("loop2", "7:2", None);
    model.device("loop3", "7:3", Some("/srv/with a blank\\/second.img"));
    let devices = model.sys.path().join("fs/btrfs/5c1b/devices");
    fs::create_dir_all(&devices).expect("a folder");
    for name in ["loop2", "loop3"] {
        symlink(model.sys.path().join("devices").join(name), devices.join(name)).expect("a link");
    }
    model.refuses(&["/data", "/srv/with a blank\\"], &[], "second.img");
}

#[test]
fn a_loop_devices_file_that_cannot_be_found_is_a_refusal() {
    let model = Model::new("30 27 7:1 / /mnt rw - xfs /dev/loop1 rw\n");
    model.device("loop1", "7:1", Some("/images/xfs.img (deleted)"));
    model.refuses(&["/mnt"], &[], "cannot be found out");
}

use std::os::unix::fs::PermissionsExt as _;

use super::super::TrackedDisk;
use super::*;

fn disk(path: &Path) -> Disk {
    Disk { name: "disk0".into(), path: path.into() }
}

fn keeping(path: &Path) -> Tracking {
    let tracked =
        TrackedDisk { name: "disk0".into(), size: 0, path: path.into(), inode: 0, changed_at_ns: 0, subvolume: None };
    Tracking { provider: "reflink".into(), id: "01".into(), disks: vec![tracked] }
}

/// An image with its folder.
fn image(dir: &tempfile::TempDir, name: &str) -> (PathBuf, PathBuf) {
    let image = dir.path().canonicalize().expect("a folder").join(name);
    fs::write(&image, "an image").expect("an image");
    let folder = folder(&image).expect("its folder");
    make_folder(&folder).expect("made");
    (image, folder)
}

#[test]
fn names_are_checked() {
    let long = "a".repeat(ID_MAX + 1);
    for id in ["", "a/b", "..", "a-b", "a b", "ä", long.as_str()] {
        assert!(check_id(id).is_err(), "{id}");
    }
    assert_eq!(check_id("0198c4").expect("an id"), "0198c4");
    let disks =
        |names: &[&str]| names.iter().map(|name| Disk { name: (*name).into(), path: "/x".into() }).collect::<Vec<_>>();
    let bad: [&[&str]; 6] = [&[], &["disk0", "disk0"], &["Disk0"], &["disk-0"], &[""], &["../x"]];
    for names in bad {
        assert!(check_disks(&disks(names)).is_err(), "{names:?}");
    }
    check_disks(&disks(&["disk0", "disk1"])).expect("good names");
    assert!(is_clone_name(&clone_name("0198c4", "disk0")));
    for name in [
        "0198c4.raw",
        "0198c4-disk0.qcow2",
        "-disk0.raw",
        "0198c4-.raw",
        "a b-disk0.raw",
        "x-y-z.raw",
        "0198c4-disk0.raw.bak",
    ] {
        assert!(!is_clone_name(OsStr::new(name)), "{name}");
    }
}

#[test]
fn only_leftovers_of_these_disks_are_removed() {
    let dir = tempfile::tempdir().expect("a folder");
    let (first, folder) = image(&dir, "machine.img");
    let (_, neighbour) = image(&dir, "neighbour.img");
    let (gone, orphaned) = image(&dir, "gone.img");
    fs::remove_file(gone).expect("gone");
    for path in [
        folder.join("01-disk0.raw"),
        folder.join("02-disk0.raw"),
        // Whoever has put these there, we have not.
        folder.join("notes.txt"),
        folder.join("03-disk0.raw.bak"),
        folder.parent().expect("the upper folder").join("04-disk0.raw"),
        neighbour.join("05-disk0.raw"),
        orphaned.join("06-disk0.raw"),
    ] {
        fs::write(path, "a clone").expect("a clone");
    }
    fs::create_dir(folder.join("07-disk0.raw")).expect("a folder");
    // No root of a subvolume.
    fs::create_dir(folder.join("08")).expect("a folder");
    std::os::unix::fs::symlink(&first, folder.join("09-disk0.raw")).expect("a link");
    let used = CloneFile::new(folder.join("10-disk0.raw")).expect("a clone");

    let keep = [keeping(&folder.join("02-disk0.raw"))];
    let removed = sweep(&[disk(&first)], &keep).expect("swept");
    let expected: Vec<String> = [orphaned.join("06-disk0.raw"), folder.join("01-disk0.raw")]
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    assert_eq!(removed, expected);
    assert!(!orphaned.exists() && neighbour.join("05-disk0.raw").exists() && first.exists());
    for name in ["02-disk0.raw", "notes.txt", "03-disk0.raw.bak", "07-disk0.raw", "08", "09-disk0.raw", "10-disk0.raw"]
    {
        assert!(fs::symlink_metadata(folder.join(name)).is_ok(), "{name}");
    }
    // Whoever used it has died.
    used.keep();
    let removed = sweep(&[disk(&first)], &[]).expect("swept");
    assert_eq!(removed.len(), 2, "{removed:?}");
    // A second time there is nothing.
    assert!(sweep(&[disk(&first)], &[]).expect("swept").is_empty());
}

#[test]
fn folders_go_with_their_last_clone() {
    let dir = tempfile::tempdir().expect("a folder");
    let (first, folder) = image(&dir, "machine.img");
    CloneFile::new(folder.join("01-disk0.raw")).expect("a clone").keep();
    assert_eq!(sweep(&[disk(&first)], &[]).expect("swept").len(), 1);
    assert!(!folder.parent().expect("the upper folder").exists());
    // The image itself may be gone, and where it was was never swept.
    fs::remove_file(&first).expect("gone");
    assert!(sweep(&[disk(&first)], &[]).expect("swept").is_empty());
}

#[test]
fn a_folder_of_others_is_not_used() {
    let dir = tempfile::tempdir().expect("a folder");
    let (first, folder) = image(&dir, "machine.img");
    let clone = folder.join("01-disk0.raw");
    fs::write(&clone, "a clone").expect("a clone");
    let top = folder.parent().expect("the upper folder");
    fs::set_permissions(top, fs::Permissions::from_mode(0o777)).expect("open to all");
    assert!(sweep(&[disk(&first)], &[]).expect("swept").is_empty());
    assert!(clone.exists());
    let problem = make_folder(&folder).expect_err("anybody may write there");
    assert_eq!(problem.reason, Reason::SnapshotFailed);
}

#[test]
fn a_clone_goes_when_nobody_keeps_it_and_takes_nobody_elses_with_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("01-disk0.raw");
    drop(CloneFile::new(path.clone()).expect("a clone"));
    assert!(!path.exists());
    let clone = CloneFile::new(path.clone()).expect("a clone");
    assert!(CloneFile::new(path.clone()).is_err(), "it is there already");
    fs::remove_file(&path).expect("taken away");
    fs::write(&path, "of somebody else").expect("a file");
    clone.remove().expect("nothing to remove");
    assert!(path.exists());
    let clone = CloneFile::new(dir.path().join("02-disk0.raw")).expect("a clone");
    assert_eq!(clone.file.metadata().expect("its facts").mode() & 0o777, 0o600);
}

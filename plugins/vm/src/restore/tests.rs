use super::*;

fn disk(name: &str, size: u64) -> MachineDisk {
    MachineDisk {
        name: name.to_owned(),
        stream: crate::stream_of(name),
        size,
        path: "/dev/none".into(),
        allocated_bytes: size,
        read_bytes: size,
        same_bytes: 0,
    }
}

fn target(to: &Path) -> DiskTarget {
    DiskTarget { to: to.to_owned(), disk: None, overwrite: None }
}

fn names(place: Place) -> Vec<PathBuf> {
    match place {
        Place::Files { files, .. } => files.into_iter().map(|(_, path)| path).collect(),
        Place::Device(disk) => vec![PathBuf::from(disk.name)],
    }
}

#[test]
fn a_disk_goes_into_a_file_and_several_into_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (file, folder) = (dir.path().join("a.raw"), dir.path().join("new"));
    let one = || vec![disk("disk0", 5)];
    let two = || vec![disk("disk0", 5), disk("disk1", 7)];
    assert_eq!(names(place(&target(&file), one()).unwrap()), std::slice::from_ref(&file));
    assert_eq!(names(place(&target(dir.path()), one()).unwrap()), [dir.path().join("disk0.raw")]);
    let both = [folder.join("disk0.raw"), folder.join("disk1.raw")];
    assert_eq!(names(place(&target(&folder), two()).unwrap()), both);
    let slash = PathBuf::from(format!("{}/", folder.display()));
    assert_eq!(names(place(&target(&slash), one()).unwrap()), [folder.join("disk0.raw")]);
    assert!(!folder.exists(), "nothing was made");
    std::fs::write(&file, "x").unwrap();
    let reason = |target: &DiskTarget, disks| place(target, disks).err().map(|problem| problem.reason);
    assert_eq!(reason(&target(&file), one()), Some(Reason::TargetExists));
    std::fs::write(dir.path().join("disk1.raw"), "x").unwrap();
    assert_eq!(reason(&target(dir.path()), two()), Some(Reason::TargetExists));
    let other = DiskTarget { overwrite: Some("/dev/other".into()), ..target(&folder) };
    assert_eq!(reason(&other, one()), Some(Reason::TargetInUse), "two devices are named");
    let mistyped = PathBuf::from("/dev/vaultferry-none");
    assert_eq!(reason(&target(&mistyped), one()), Some(Reason::InvalidRequest), "no file in memory");
    let mistyped = DiskTarget { overwrite: Some(folder.clone()), ..target(&folder) };
    assert_eq!(reason(&mistyped, one()), Some(Reason::InvalidRequest), "no file where a device is named");
    assert_eq!(reason(&target(&folder), Vec::new()), Some(Reason::InvalidRequest));
    assert_eq!(chosen(two(), Some("disk1")).unwrap(), [disk("disk1", 7)]);
    assert!(chosen(two(), Some("disk2")).unwrap_err().message.contains("disk0, disk1"));
}

#[tokio::test]
async fn a_device_has_its_beginning_when_it_has_all_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    std::fs::write(&path, [9_u8; 40]).unwrap();
    // O_EXCL means nothing for a file that is there and not to be made.
    let mut device = Device::begin(&path, 8).await.unwrap();
    for (offset, piece) in [(0, "abcdefghij"), (10, "klmno")] {
        device.write(offset, Bytes::from(piece)).await.unwrap();
    }
    let half = std::fs::read(&path).unwrap();
    assert_eq!((&half[..8], &half[8..15]), (&[0; 8][..], &b"ijklmno"[..]), "nobody takes it for a disk");
    device.finish().await.unwrap();
    let whole = std::fs::read(&path).unwrap();
    assert_eq!((&whole[..15], &whole[15..]), (&b"abcdefghijklmno"[..], &[9; 25][..]));
}

#[tokio::test]
async fn what_a_killed_restore_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("restored");
    std::fs::create_dir(&folder).unwrap();
    let (ours, others) = (".vaultferry-disk-j1-disk0.part", ".vaultferry-disk-j2-disk0.part");
    for path in [dir.path().join(ours), folder.join(ours), folder.join(others)] {
        std::fs::write(path, "x").unwrap();
    }
    for to in [folder.clone(), dir.path().join("new.raw"), "/nowhere/at/all".into()] {
        clean_up("j-1", &target(&to), &CancellationToken::new()).await.unwrap();
    }
    assert!(!dir.path().join(ours).exists() && !folder.join(ours).exists() && folder.join(others).exists());
}

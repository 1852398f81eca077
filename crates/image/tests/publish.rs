//! An image file appears complete under its name, or not at all.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use common::*;
use cpr_image::model::Manifest;
use cpr_image::{Image, ImageWriter, PendingImage};
use cpr_types::ErrorKind;

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// LBNL-3.6.2.5: nobody may write an image, and only its owner may read it, whatever the umask.
#[test]
fn lbnl_3_6_2_5_published_image_is_readable_by_its_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.cpr");
    let pending = PendingImage::create(&path).unwrap();
    let [temporary] = &names(directory.path())[..] else {
        panic!("one file")
    };
    assert!(
        temporary.starts_with(".a.cpr.") && temporary.ends_with(".part"),
        "{temporary}"
    );
    assert_eq!(
        mode(&directory.path().join(temporary)) & 0o077,
        0,
        "open to others while it is written"
    );
    let mut writer = ImageWriter::new(&pending, "x86_64").unwrap();
    writer.append(&pages(4)).unwrap();
    let (_, summary) = writer.finish(&manifest()).unwrap();
    pending.publish(None).unwrap();
    assert_eq!(names(directory.path()), ["a.cpr"]);
    assert_eq!(mode(&path), 0o400);
    let image = Image::open(&path).unwrap();
    assert_eq!(image.root_hash(), summary.root_hash);
    image.verify_data(&mut |_, _| {}).unwrap();
}

#[test]
fn the_old_image_stays_until_the_new_one_is_complete() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.cpr");
    let publish = |job: &str| {
        let mut manifest = Manifest::default();
        manifest.checkpoint.job = job.to_string();
        let pending = PendingImage::create(&path).unwrap();
        ImageWriter::new(&pending, "x86_64").unwrap().finish(&manifest).unwrap();
        pending
    };
    let job = || Image::open(&path).unwrap().manifest().checkpoint.job.clone();
    publish("old").publish(None).unwrap();
    let new = publish("new");
    assert_eq!(job(), "old");
    new.publish(None).unwrap();
    assert_eq!(job(), "new");
    let third = publish("third");
    assert_eq!(names(directory.path()).len(), 2);
    drop(third);
    publish("fourth").discard();
    assert_eq!(job(), "new");
    assert_eq!(names(directory.path()), ["a.cpr"]);
}

/// Whoever makes it, the image can be made to belong to another user.
#[test]
fn an_image_is_given_to_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.cpr");
    let me = fs::metadata(directory.path()).unwrap();
    // Given to oneself, nothing needs to be changed, and no privilege is needed.
    PendingImage::create(&path)
        .unwrap()
        .publish(Some((me.uid(), me.gid())))
        .unwrap();
    let other = (me.uid() + 4242, me.gid() + 4242);
    let result = PendingImage::create(&path).unwrap().publish(Some(other));
    if me.uid() == 0 {
        result.unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), other);
        assert_eq!(mode(&path), 0o400);
    } else {
        eprintln!("giving to another user not tested: needs root");
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.message().contains("a.cpr"));
        assert_eq!(
            fs::metadata(&path).unwrap().uid(),
            me.uid(),
            "the image there before has gone"
        );
        assert_eq!(names(directory.path()), ["a.cpr"]);
    }
}

#[test]
fn impossible_destinations_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| PendingImage::create(&directory.path().join(name));
    assert_eq!(at("missing/a.cpr").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(at("missing/a.cpr").unwrap_err().message().contains("missing"));
    fs::create_dir(directory.path().join("d")).unwrap();
    for name in ["d", "d/", "d/..", "new/"] {
        assert_eq!(at(name).unwrap_err().kind(), ErrorKind::Usage, "{name}");
    }
    assert_eq!(
        PendingImage::create(Path::new("/")).unwrap_err().kind(),
        ErrorKind::Usage
    );
    // A name as long as possible leaves no room for more, but is a name.
    let long = "n".repeat(255);
    at(&long).unwrap().publish(None).unwrap();
    assert_eq!(names(directory.path()), ["d".to_string(), long]);
}

/// A directory that may be written but not read is enough.
#[test]
fn a_directory_that_cannot_be_listed() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o300)).unwrap();
    let path = directory.path().join("a.cpr");
    PendingImage::create(&path).unwrap().publish(None).unwrap();
    drop(PendingImage::create(&path).unwrap());
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(names(directory.path()), ["a.cpr"]);
}

#[test]
fn only_regular_files_are_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.cpr");
    fs::write(&path, image()).unwrap();
    Image::open(&path).unwrap();
    let link = directory.path().join("link.cpr");
    symlink(&path, &link).unwrap();
    let error = Image::open(&link).unwrap_err();
    assert!(error.message().contains("symbolic link"), "{error}");
    assert_eq!(
        Image::open(&directory.path().join("missing")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert!(
        Image::open(directory.path())
            .unwrap_err()
            .message()
            .contains("a directory")
    );
    assert!(
        Image::open(Path::new("/dev/null"))
            .unwrap_err()
            .message()
            .contains("a device")
    );
    // Does not wait for a writer.
    let fifo = directory.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(Image::open(&fifo).unwrap_err().message().contains("a pipe"));
}

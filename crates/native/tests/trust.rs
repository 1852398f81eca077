//! What an image that belongs to a user may ask of root.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::chown;

use cpr_image::model::{AddressSpace, AddressSpaceId, Checkpoint, Credentials, Manifest, Process, Thread};
use cpr_image::{Image, ImageWriter, PendingImage};
use cpr_native::{JobControl, RestartRequest, restart};
use cpr_types::ErrorKind;

const USER: u32 = 65534;

fn image(credentials: Credentials, owner_uid: u32) -> Manifest {
    Manifest {
        checkpoint: Checkpoint {
            architecture: "x86_64".to_owned(),
            root_pid: 50,
            owner_uid,
            ..Checkpoint::default()
        },
        processes: vec![Process {
            pid: 50,
            ppid: 1,
            address_space: Some(AddressSpaceId(0)),
            threads: vec![Thread {
                tid: 50,
                credentials,
                ..Thread::default()
            }],
            cwd: "/".into(),
            root: "/".into(),
            ..Process::default()
        }],
        address_spaces: vec![AddressSpace::default()],
        ..Manifest::default()
    }
}

/// Restarts such an image as root when the file belongs to `USER`; gives the error.
fn refused(manifest: &Manifest) -> cpr_types::Error {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.cpr");
    let pending = PendingImage::create(&path).unwrap();
    ImageWriter::new(&pending, "x86_64").unwrap().finish(manifest).unwrap();
    pending.publish(None).unwrap();
    chown(&path, Some(USER), Some(USER)).unwrap();
    let image = Image::open(&path).unwrap();
    restart(RestartRequest {
        devices: None,
        in_sandbox: false,
        own_cgroups: false,
        image: &image,
        streams: [None, None, None],
        terminal: None,
        job_control: JobControl::None,
        meeting: None,
        own_pid_namespace: false,
        rebirth: Default::default(),
        log: None,
        lazy: None,
        hold: None,
    })
    .unwrap_err()
}

/// An image edited to claim another user, group or group membership is refused before any process is made.
#[test]
fn root_refuses_identities_that_the_owner_of_an_image_does_not_have() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let own = Credentials {
        uids: [USER; 4],
        gids: [USER; 4],
        ..Credentials::default()
    };
    let cases = [
        Credentials {
            uids: [USER, 0, USER, USER],
            ..own.clone()
        },
        Credentials {
            gids: [0, USER, USER, USER],
            ..own.clone()
        },
        Credentials {
            groups: vec![0],
            ..own.clone()
        },
    ];
    for credentials in cases {
        let error = refused(&image(credentials, USER));
        assert_eq!(error.kind(), ErrorKind::Denied, "{}", error.chain());
        assert!(error.chain().contains("claims"), "{}", error.chain());
    }
    let error = refused(&image(own, 0));
    assert_eq!(error.kind(), ErrorKind::Denied, "{}", error.chain());
}

//! Files of jobs: brought to their nodes before they start and where they go on, and away when they have ended.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use support::lab::Lab;
use support::s3::Server;
use support::*;

/// A file of the user whose jobs they are.
fn own(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
}

/// Counts, then makes a result of what was staged in.
fn counts_and_doubles(last: u32) -> [String; 3] {
    let [shell, option, count] = counter(last);
    [
        shell,
        option,
        format!("{count}; cat data/in data/in > result; echo done > log"),
    ]
}

// SAGA-JD-Core-FileTransfer
#[test]
fn files_come_before_a_job_starts_and_where_it_goes_on_and_its_results_are_where_they_should_be() {
    if !am_root() {
        return skipped("hosts that are namespaces: only root can make them");
    }
    let mut lab = Lab::new(2, "", "area = 'DIR/area'");
    let at = |lab: &Lab, name: &str| lab.site.path(name);
    let place = at(&lab, "area/nobody");
    own(&place.join("in"), "a\n");
    chown(&place, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o700)).unwrap();
    own(&at(&lab, "more"), "b\n");
    let more = format!("{} >> data/in", at(&lab, "more").display());
    let options = [
        "--stage-in",
        "area:in > data/in",
        "--stage-in",
        &more,
        "--stage-out",
        "result>area:runs/1/result",
        "--stage-out",
        "area:log<<log",
    ];
    own(&place.join("log"), "before\n");
    let id = lab.site.submit("out", &options, &counts_and_doubles(200));
    lab.site.wait_for_count("out", 20);
    assert_eq!(fs::read_to_string(at(&lab, "work/data/in")).unwrap(), "a\nb\n");
    assert_eq!(lab.site.json(&["checkpoint", &format!("@{id}")])["state"], "complete");
    // Where it goes on there is nothing of it, as on another disk.
    let node = lab.site.job(&id)["node"].as_str().unwrap().to_string();
    lab.crash(&node);
    fs::remove_file(at(&lab, "work/data/in")).unwrap();
    lab.site.wait_for_state(&id, "finished");
    assert_eq!(lab.site.output("out"), counted(200));
    assert_eq!(lab.site.job(&id)["incarnation"], 2);
    assert_eq!(fs::read_to_string(place.join("runs/1/result")).unwrap(), "a\nb\na\nb\n");
    assert_eq!(fs::read_to_string(place.join("log")).unwrap(), "before\ndone\n");

    // What cannot be is said, and by whose step it was.
    let secret = at(&lab, "secret");
    fs::write(&secret, "root's").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    symlink("/tmp", at(&lab, "work/away")).unwrap();
    let secret = format!("{}>got", secret.display());
    for (option, directive, why) in [
        ("--stage-in", "area:none>x", "stage in area:none as x"),
        ("--stage-in", secret.as_str(), "Permission denied"),
        ("--stage-in", "area:in>away/x", "leads out of its directory"),
        (
            "--stage-out",
            "nothing>area:x",
            "exit code 0, but stage out nothing as area:x",
        ),
    ] {
        let id = lab.site.submit("failing", &[option, directive], &["true"]);
        let reason = lab.site.wait_for_state(&id, "failed")["reason"].to_string();
        assert!(reason.contains(why), "{directive}: {reason}");
    }
    assert!(!at(&lab, "work/got").exists());
    // A program that fails has failed, whatever it has left.
    let id = lab
        .site
        .submit("failing", &["--stage-out", "nothing>area:x"], &["false"]);
    assert_eq!(lab.site.wait_for_state(&id, "failed")["exit_code"], 1);
    for bad in ["in", "area:../in>x", "area:in>../x", "in>x"] {
        let refused = lab.site.cpr(&["submit", "--stage-in", bad, "--", "true"]);
        assert_eq!(refused.status.code(), Some(64), "{bad}: {refused:?}");
    }
}

// GCA-ENV-7
#[test]
fn a_jobs_input_comes_from_a_bucket_and_its_result_is_put_back_there() {
    if !am_root() {
        return skipped("files of another user: only root can act for one");
    }
    let mut site = Site::new();
    let Some(server) = Server::start(&site) else {
        return skipped("files in a bucket: s3s-fs is not installed");
    };
    fs::write(site.path("keys"), "ACCESS\nSECRET\n").unwrap();
    site.configure_all("");
    let config = fs::read_to_string(site.path("all.toml")).unwrap();
    let address = &server.address;
    site.configure(
        "all.toml",
        &format!("{config}area = 's3://images/files'\n[s3]\nendpoint = 'http://{address}'\nkey_file = 'DIR/keys'\n"),
    );
    site.start("all", "all");
    let object = |site: &Site, name: &str| site.path(&format!("s3/images/files/nobody/{name}"));
    fs::create_dir_all(object(&site, "")).unwrap();
    fs::write(object(&site, "in"), "a\n").unwrap();
    let file = site.path("work/job.toml");
    let text = "output = 'out'\ncommand = ['sh', '-c', 'cat data/in data/in > result']\n\
                [[stage_in]]\nfrom = 'area:in'\nto = 'data/in'\n\
                [[stage_out]]\nfrom = 'result'\nto = 'area:runs/result'\n";
    fs::write(&file, text).unwrap();
    let id = site
        .text(&["submit", "--file", file.to_str().unwrap()])
        .trim()
        .to_string();
    site.wait_for_state(&id, "finished");
    assert_eq!(fs::read_to_string(object(&site, "runs/result")).unwrap(), "a\na\n");
    // Another user's part of it is not reached by whatever name.
    let missing = site.submit("out", &["--stage-in", "area:none>x"], &["true"]);
    let reason = site.wait_for_state(&missing, "failed")["reason"].to_string();
    assert!(reason.contains("stage in area:none as x"), "{reason}");
    let waiting = site.path(&format!("node/users/{}/staged", NOBODY));
    assert_eq!(fs::read_dir(waiting).unwrap().count(), 0, "nothing is left on the way");
}

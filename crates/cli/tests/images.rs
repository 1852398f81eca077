//! Images that are small because they say nothing twice.

mod support;

use std::fs;
use std::path::Path;

use support::{As, Cpr};

/// A job `bulk MODE MIB` that is ready.
fn bulk(test: &str, user: As, options: &[&str], mode: &str, mebibytes: &str) -> Option<Cpr> {
    let cpr = Cpr::new(test, user)?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/victims/bulk.c");
    let program = cpr.work.join("bulk");
    let built = std::process::Command::new("cc")
        .args(["-O2", "-o"])
        .args([&program, &source])
        .status();
    if !built.is_ok_and(|status| status.success()) {
        support::note_skip(test, "there is no C compiler");
        return None;
    }
    cpr.give(&program);
    cpr.run_detached("job", options, &["./bulk", mode, mebibytes]);
    support::wait_until(support::PATIENCE, "the program is ready", || {
        cpr.logs("job").starts_with(b"ready")
    });
    Some(cpr)
}

/// Ends the job, lets the program check itself in each of the images.
fn check(cpr: &Cpr, images: &[String]) {
    cpr.cpr(["kill", "job", "--signal", "KILL"]).good();
    cpr.wait("job");
    fs::write(cpr.work.join("check"), "").expect("a file can be written");
    for (number, image) in images.iter().enumerate() {
        cpr.cpr(["verify", image]).good();
        let name = format!("again{number}");
        cpr.cpr(["restart", "-d", "--name", &name, image]).good();
        let code = cpr.wait(&name);
        let said = cpr.logs(&name);
        assert_eq!(code, 0, "{image}: {}", String::from_utf8_lossy(&said));
    }
}

fn count(report: &serde_json::Value, key: &str) -> u64 {
    report[key].as_u64().expect("a number")
}

/// Of memory nine tenths of which are alike, an image has a tenth, whether they are zeros or anything else.
#[test]
fn equal_pages_are_stored_once() {
    for (mode, user) in [("zeros", As::User), ("equal", As::Root)] {
        let Some(cpr) = bulk("equal_pages_are_stored_once", user, &[], mode, "64") else {
            return;
        };
        let image = format!("{}/one.cpr", cpr.work.display());
        let report = cpr.checkpoint("job", &["-o", &image]);
        let most = (64 << 20) * 12 / 100;
        assert!(count(&report, "bytes") <= most, "{mode}: {report}");
        let stopped = format!("{}/two.cpr", cpr.work.display());
        let report = cpr.checkpoint("job", &["--stop", "-o", &stopped]);
        assert!(count(&report, "bytes") <= most, "{mode}, stopped: {report}");
        let images = [image, stopped];
        fs::write(cpr.work.join("check"), "").expect("a file can be written");
        for (number, image) in images.iter().enumerate() {
            let name = format!("again{number}");
            cpr.cpr(["restart", "-d", "--name", &name, image]).good();
            assert_eq!(cpr.wait(&name), 0, "{image}");
        }
    }
}

/// Compressed images, of memory that can be compressed and of memory that cannot, restart like others.
#[test]
fn compressed_images_restart() {
    for (mode, user) in [("text", As::User), ("random", As::Root)] {
        let Some(cpr) = bulk("compressed_images_restart", user, &[], mode, "24") else {
            return;
        };
        let mut images = Vec::new();
        for (number, option) in ["--compress", "--compress=1", "--compress=7"].iter().enumerate() {
            let image = format!("{}/{number}.cpr", cpr.work.display());
            let report = cpr.checkpoint("job", &[option, "-o", &image]);
            assert!(count(&report, "data_bytes") > 24 << 20, "{report}");
            if mode == "text" && *option != "--compress" {
                assert!(count(&report, "bytes") < 4 << 20, "{report}");
            }
            images.push(image);
        }
        check(&cpr, &images);
    }
}

/// A compressed image goes through a pipe.
#[test]
fn a_compressed_image_in_a_stream() {
    let test = "a_compressed_image_in_a_stream";
    let Some(cpr) = bulk(test, As::User, &[], "text", "8") else {
        return;
    };
    let image = format!("{}/stream.cpr", cpr.work.display());
    let mut command = cpr.command("sh");
    command.arg("-c").arg(format!(
        "{} checkpoint --compress=3 -o - job | cat > {image}",
        cpr.binary().display()
    ));
    support::finish(&cpr.work, command, support::PATIENCE).good();
    assert!(fs::metadata(&image).expect("it is there").len() < 2 << 20);
    cpr.cpr(["inspect", &image]).good();
    check(&cpr, &[image]);
}

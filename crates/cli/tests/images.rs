//! Images that are small because they say nothing twice, in themselves or from one to the next.

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
    check_each(cpr, images);
}

/// Lets the program check itself in each of the images.
fn check_each(cpr: &Cpr, images: &[String]) {
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

/// Has the job write a hundredth of its memory, and more, anew.
fn step(cpr: &Cpr, number: usize, processes: usize) {
    fs::write(cpr.work.join(format!("step-{number}")), "").expect("a file can be written");
    support::wait_until(support::PATIENCE, "the step has been made", || {
        let said = String::from_utf8_lossy(&cpr.logs("job")).into_owned();
        (0..processes).all(|process| said.contains(&format!("step {number} of {process}\n")))
    });
}

/// Images of the job, oldest first, as `cpr images` lists them.
fn images(cpr: &Cpr) -> Vec<serde_json::Value> {
    let listed = cpr.cpr(["--json", "images", "job"]).good().json();
    listed["images"].as_array().expect("a list").clone()
}

fn path(image: &serde_json::Value) -> String {
    image["path"]
        .as_str()
        .or(image["image"].as_str())
        .expect("a path")
        .to_owned()
}

/// Increments hold what was written, and restart from any of them gives the memory of that moment: also of pages given
/// back, of mappings replaced, and of a process forked in between.
fn increments(test: &str, user: As) {
    let Some(cpr) = bulk(test, user, &[], "random", "64") else {
        return;
    };
    let mut made = vec![cpr.checkpoint("job", &["--incremental"])];
    assert!(made[0]["parent"].is_null(), "nothing to refer to so far: {}", made[0]);
    for number in 1..=4 {
        step(&cpr, number, 2);
        made.push(cpr.checkpoint("job", &["--incremental"]));
        assert_eq!(made[number]["parent"], made[number - 1]["image_id"], "{}", made[number]);
    }
    // By now both processes are tracked: one page in a hundred, the mappings that were replaced, some pages besides.
    let dirty = 2 * (64 << 20) / 100;
    for increment in &made[3..] {
        let bytes = count(increment, "bytes");
        assert!(bytes > dirty && bytes < dirty * 13 / 10 + (256 << 10), "{increment}");
    }
    // One to a file elsewhere, and a full one that is the base of the next.
    let elsewhere = format!("{}/elsewhere.cpr", cpr.work.display());
    step(&cpr, 5, 2);
    made.push(cpr.checkpoint("job", &["--incremental", "--compress=3", "-o", &elsewhere]));
    step(&cpr, 6, 2);
    made.push(cpr.checkpoint("job", &[]));
    assert!(
        made[6]["parent"].is_null() && count(&made[6], "bytes") > 64 << 20,
        "{}",
        made[6]
    );
    step(&cpr, 7, 2);
    made.push(cpr.checkpoint("job", &["--incremental"]));
    assert_eq!(made[7]["parent"], made[6]["image_id"]);
    assert!(count(&made[7], "bytes") < 3 << 20, "{}", made[7]);
    step(&cpr, 8, 2);
    made.push(cpr.checkpoint("job", &["--incremental", "--stop"]));
    assert_eq!(made[8]["parent"], made[7]["image_id"]);

    let tree = cpr.cpr(["images", "--tree", "job"]).good().text();
    let depths: Vec<usize> = tree
        .lines()
        .skip(1)
        .filter_map(|line| {
            let (before, _) = line.split_once('/')?;
            Some(before.len() - before.trim_end().len())
        })
        .collect();
    assert_eq!(
        depths.iter().map(|depth| depth - depths[0]).collect::<Vec<_>>(),
        [0, 2, 4, 6, 8, 0, 2, 4],
        "{tree}"
    );

    let merged = format!("{}/merged.cpr", cpr.work.display());
    cpr.cpr(["merge", &path(&made[5]), "-o", &merged]).good();
    let refused = cpr.cpr(["rm", &path(&made[0])]);
    assert!(refused.stderr.contains("is needed by"), "{}", refused.stderr);
    let mut all: Vec<String> = made.iter().map(path).collect();
    all.insert(6, merged.clone());
    // The newest first: a restart cuts the file it prints to back to what it was.
    all.reverse();
    check_each(&cpr, &all);

    // Without what they need they are refused by name, and the one that needs nothing is not.
    cpr.cpr(["rm", "--force", &path(&made[0])]).good();
    let lost = cpr.cpr(["restart", "-d", &path(&made[2])]);
    assert!(lost.code != 0 && lost.stderr.contains("000001.cpr"), "{}", lost.stderr);
    assert!(cpr.cpr(["verify", &path(&made[1])]).stderr.contains("is missing"));
    cpr.cpr(["verify", &merged]).good();

    // Several at once, in any order: one that another needs goes after that one. What cannot go keeps no other.
    let increments: Vec<String> = made[1..5].iter().map(path).collect();
    let mut words = vec!["rm", "nobody"];
    words.extend(increments.iter().map(String::as_str));
    let removed = cpr.cpr(words);
    assert!(
        removed.code != 0 && removed.stderr.contains("nobody"),
        "{}",
        removed.stderr
    );
    assert!(!removed.stderr.contains("is needed by"), "{}", removed.stderr);
    assert!(increments.iter().all(|image| !Path::new(image).exists()));
}

#[test]
fn increments_as_user() {
    increments("increments_as_user", As::User);
}

#[test]
fn increments_as_root() {
    increments("increments_as_root", As::Root);
}

/// `--sequence` makes full images and increments in turn, and `--keep` removes none that another one needs.
// GCA-CTS-12, XGCP-FILE-7
#[test]
fn a_sequence_of_full_images_and_increments() {
    let test = "a_sequence_of_full_images_and_increments";
    let options = ["--every", "500ms", "--sequence", "FIii", "--keep", "2"];
    let Some(cpr) = bulk(test, As::User, &options, "random", "8") else {
        return;
    };
    let mut kinds = std::collections::BTreeMap::new();
    let mut number = 0;
    while kinds.len() < 9 {
        number += 1;
        step(&cpr, number, 2);
        for image in images(&cpr) {
            let id = image["image_id"].as_str().unwrap_or_default().to_owned();
            let path = path(&image);
            let file = Path::new(&path).file_stem().and_then(|name| name.to_str());
            let number: u64 = file.and_then(|name| name.parse().ok()).expect("a number");
            kinds.insert(number, (id, image["parent"].clone()));
        }
    }
    // Images are numbered from 1; one may have gone before it was seen.
    for (number, (_, parent)) in &kinds {
        match (number - 1) % 4 {
            0 => assert!(parent.is_null(), "{number}: {kinds:?}"),
            _ => match kinds.get(&(number - 1)) {
                Some((id, _)) => assert_eq!(parent.as_str(), Some(id.as_str()), "{number}: {kinds:?}"),
                None => assert!(parent.is_string(), "{number}: {kinds:?}"),
            },
        }
    }
    cpr.cpr(["kill", "job", "--signal", "KILL"]).good();
    cpr.wait("job");
    fs::write(cpr.work.join("check"), "").expect("a file can be written");
    let left = images(&cpr);
    assert!((2..=5).contains(&left.len()), "{left:?}");
    for (number, image) in left.iter().rev().enumerate() {
        let name = format!("again{number}");
        cpr.cpr(["restart", "-d", "--name", &name, &path(image)]).good();
        assert_eq!(cpr.wait(&name), 0, "{image}");
    }
}

/// Says its own PID and a number, again and again.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $$ $i; sleep 0.05; done";

/// What a job has said: its PID, and the numbers.
fn counted(cpr: &Cpr, job: &str) -> (String, Vec<u64>) {
    let said = String::from_utf8_lossy(&cpr.logs(job)).into_owned();
    let end = said.rfind('\n').map_or(0, |end| end + 1);
    let pairs: Vec<(&str, &str)> = said[..end].lines().filter_map(|line| line.split_once(' ')).collect();
    let pid = pairs.first().map_or("", |(pid, _)| pid);
    assert!(pairs.iter().all(|(own, _)| *own == pid), "{said}");
    let numbers = pairs.iter().map(|(_, number)| number.parse().expect("a number"));
    (pid.to_owned(), numbers.collect())
}

/// A copy of what a job was, beside the job and under the same PID, where it can be looked at.
// XGCP-USE-5, XGCP-RES-1, XGCP-RES-4
#[test]
fn an_older_generation_runs_again_under_a_debugger_while_the_job_goes_on() {
    let test = "an_older_generation_runs_again_under_a_debugger";
    let Some(cpr) = Cpr::new(test, As::User) else { return };
    cpr.run_detached("job", &[], &["sh", "-c", COUNT]);
    let last = |job: &str| counted(&cpr, job).1.last().copied().unwrap_or(0);
    let mut had = Vec::new();
    for _ in 0..5 {
        let before = last("job");
        support::wait_until(support::PATIENCE, "it gets on", || last("job") > before + 4);
        cpr.checkpoint("job", &[]);
        had.push(last("job"));
    }
    let all = images(&cpr);
    assert_eq!(all.len(), 5);
    let second = path(&all[1]);
    for name in ["copy", "twin"] {
        cpr.cpr(["restart", "-d", "--name", name, &second]).good();
        support::wait_until(support::PATIENCE, "the copy gets on", || {
            counted(&cpr, name).1.len() > 3
        });
        let (pid, numbers) = counted(&cpr, name);
        assert_eq!(pid, counted(&cpr, "job").0, "by the same PID");
        assert!(
            numbers[0] > had[0] && numbers[0] <= had[1] + 1,
            "{numbers:?} and {had:?}"
        );
    }
    let before = last("job");
    support::wait_until(support::PATIENCE, "the job goes on", || last("job") > before + 3);
    let (_, numbers) = counted(&cpr, "job");
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    // The number that it holds can be read in it.
    if std::process::Command::new("gdb").arg("--version").output().is_err() {
        return support::note_skip(test, "there is no gdb");
    }
    let jobs = cpr.cpr(["ps", "--json"]).good().json();
    let copy = jobs["jobs"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|job| job["name"] == "copy");
    let pid = copy.expect("it is there")["pid"].to_string();
    let looked = cpr.program(&[
        "gdb",
        "--batch",
        "-nx",
        "-p",
        &pid,
        "-ex",
        "info proc",
        "-ex",
        "info registers rip",
    ]);
    let said = looked.good().text();
    assert!(
        said.contains(&format!("process {pid}")) && said.contains("rip "),
        "{said}"
    );
    let before = last("copy");
    support::wait_until(support::PATIENCE, "the copy goes on", || last("copy") > before + 3);
    for name in ["job", "copy", "twin"] {
        cpr.cpr(["kill", "--signal", "KILL", name]).good();
    }
}

/// The contents of memory alone are no image.
// GFD93-GLO-2
#[test]
fn an_image_without_its_metadata_is_refused_wherever_it_is_used() {
    const DAMAGED: i32 = 65;
    let Some(cpr) = Cpr::new("an_image_without_its_metadata", As::User) else {
        return;
    };
    cpr.run_detached("job", &[], &["sh", "-c", COUNT]);
    support::wait_until(support::PATIENCE, "it counts", || counted(&cpr, "job").1.len() > 3);
    cpr.checkpoint("job", &["--stop"]);
    let made = path(&images(&cpr)[0]);
    let whole = fs::read(&made).expect("the image can be read");
    let trailer = whole.len() - 208;
    let number = |at: usize| {
        let bytes = whole[trailer + at..trailer + at + 8].try_into().expect("eight bytes");
        usize::try_from(u64::from_le_bytes(bytes)).expect("it fits")
    };
    let (from, length) = (number(48), number(56));
    assert_eq!(from + length, trailer, "docs/image-format.md");
    // Left out, with and without what comes after it; and nothing but zeros in its place.
    let cut = [&whole[..from], &whole[trailer..]].concat();
    let mut zeros = whole.clone();
    zeros[from..trailer].fill(0);
    for bytes in [&whole[..from], &cut, &zeros] {
        fs::write(&made, bytes).expect("the image can be written");
        let ways: [&[&str]; 6] = [
            &["restart", "-d", "job"],
            &["restart", "-d", "--name", "other", &made],
            &["restart", "-d", "--lazy", "--name", "other", &made],
            &["exec", "--recover", "--name", "other", "--image", &made],
            &["verify", &made],
            &["inspect", &made],
        ];
        for way in ways {
            let refused = cpr.cpr(way);
            assert_eq!(refused.code, DAMAGED, "{way:?}: {}", refused.stderr);
        }
        assert!(!cpr.is_running("job"));
    }
    fs::write(&made, &whole).expect("the image can be written");
    cpr.cpr(["restart", "-d", "job"]).good();
    cpr.cpr(["kill", "--signal", "KILL", "job"]).good();
}

//! Programs that save themselves: when they like, by ending with an agreed exit code, or in a callback of libgridcpr;
//! and engines whose images belong to one node.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::PathBuf;

use support::library::compile_with_library;
use support::{As, Cpr, PATIENCE, wait_until};

const UNSUPPORTED: i32 = 69;

/// Counts to 20. Saves itself after every fifth and ends with exit code 85, as with HTCondor.
const BY_EXIT_CODE: &str = "
import os, sys
path = os.path.join(os.environ['SAGA_CPR_BASE_LOCATION'], 'count')
count = int(open(path).read()) if os.path.exists(path) else 0
for _ in range(5):
    count += 1
    print(count, flush=True)
with open(path + '.tmp', 'w') as out:
    out.write(str(count))
os.rename(path + '.tmp', path)
sys.exit(85 if count < 20 else 0)
";

/// Counts, and saves itself when it likes: two files below a directory of its own.
const WHEN_IT_LIKES: &str = "
import os, time
base = os.path.join(os.environ['SAGA_CPR_BASE_LOCATION'], 'state')
def read(name):
    try:
        return int(open(os.path.join(base, name)).read())
    except OSError:
        return 0
count = read('count')
assert read('square') == count * count
while True:
    count += 1
    print(count, flush=True)
    time.sleep(0.01)
    if count % 100 == 0:
        os.makedirs(base, exist_ok=True)
        for name, value in [('count', count), ('square', count * count)]:
            with open(os.path.join(base, '.' + name), 'w') as out:
                out.write(str(value))
            os.rename(os.path.join(base, '.' + name), os.path.join(base, name))
";

const ENGINE: &str = "self-checkpointing";

fn images(cpr: &Cpr, job: &str) -> Vec<PathBuf> {
    let images = cpr.cpr(["images", "--json", job]).good().json();
    let path = |image: &serde_json::Value| PathBuf::from(image["path"].as_str().unwrap());
    images["images"].as_array().unwrap().iter().map(path).collect()
}

fn numbers(text: &[u8]) -> Vec<u64> {
    let text = String::from_utf8_lossy(text).into_owned();
    let end = text.rfind('\n').map_or(0, |end| end + 1);
    text[..end].lines().filter_map(|line| line.parse().ok()).collect()
}

// XGCP-APPL-1, GCA-CTS-6
#[test]
fn a_program_that_ends_to_be_started_again_is() {
    let Some(cpr) = Cpr::new("a_program_that_ends_to_be_started_again_is", As::User) else {
        return;
    };
    let program = ["--", "/usr/bin/python3", "-c", BY_EXIT_CODE];
    let ran = cpr
        .cpr([&["run", "--engine", ENGINE, "--name", "sim"][..], &program].concat())
        .good();
    let expected: Vec<u64> = (1..=20).collect();
    assert_eq!(numbers(&ran.stdout), expected, "{}", ran.stderr);
    let made = images(&cpr, "sim");
    assert_eq!(made.len(), 4, "{made:?}");
    for image in &made {
        cpr.cpr(["verify", image.to_str().unwrap()]).good();
    }
    // An older one goes on from there, and ends the same way.
    let second = made[1].to_str().unwrap();
    let copy = cpr.cpr(["restart", "--name", "copy", second]).good();
    assert_eq!(
        numbers(&copy.stdout),
        (11..=20).collect::<Vec<u64>>(),
        "{}",
        copy.stderr
    );
    assert_eq!(images(&cpr, "copy").len(), 2);
}

#[test]
fn a_program_that_ends_so_and_has_saved_nothing_is_not_started_again() {
    let Some(cpr) = Cpr::new("a_program_that_has_saved_nothing", As::User) else {
        return;
    };
    let ran = cpr.cpr([
        "run",
        "--engine",
        ENGINE,
        "--name",
        "sim",
        "--",
        "sh",
        "-c",
        "echo 1; exit 85",
    ]);
    assert_eq!(ran.code, 85, "{}", ran.stderr);
    assert_eq!(ran.stdout, b"1\n");
    assert!(ran.stderr.contains("has saved nothing"), "{}", ran.stderr);
    assert!(images(&cpr, "sim").is_empty());
    // With any other engine that is an exit code like others.
    assert_eq!(cpr.cpr(["run", "--", "sh", "-c", "exit 85"]).code, 85);
}

// GCA-CTS-14
#[test]
fn new_files_of_a_program_become_images() {
    let Some(cpr) = Cpr::new("new_files_of_a_program_become_images", As::User) else {
        return;
    };
    let program = ["/usr/bin/python3", "-c", WHEN_IT_LIKES];
    cpr.run_detached("sim", &["--engine", ENGINE, "--keep", "2"], &program);
    wait_until(PATIENCE, "the third image", || {
        images(&cpr, "sim").iter().any(|path| path.ends_with("000003.cpr"))
    });
    // Nobody can ask it to.
    let refused = cpr.cpr(["checkpoint", "sim"]);
    assert_eq!(refused.code, UNSUPPORTED, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("by the program itself only"),
        "{}",
        refused.stderr
    );
    cpr.cpr(["kill", "-s", "KILL", "sim"]).good();
    cpr.wait("sim");
    assert_eq!(images(&cpr, "sim").len(), 2);
    let had = numbers(&cpr.logs("sim"));
    let last = *had.last().unwrap();
    cpr.cpr(["restart", "-d", "sim"]).good();
    wait_until(PATIENCE, "it goes on", || numbers(&cpr.logs("sim")).len() > had.len());
    let first = numbers(&cpr.logs("sim"))[had.len()];
    assert!(
        first % 100 == 1 && first > 100 && first <= last + 1,
        "it goes on with {first} after {last}"
    );
    // And is watched as before.
    let before = images(&cpr, "sim").last().unwrap().clone();
    wait_until(PATIENCE, "another image", || {
        *images(&cpr, "sim").last().unwrap() > before
    });
    for options in [&["run", "--every", "1s"][..], &["exec", "--name", "other"]] {
        let refused = cpr.cpr([options, &["--engine", ENGINE, "--", "true"]].concat());
        assert_eq!(refused.code, UNSUPPORTED, "{}", refused.stderr);
    }
}

/// The callback is in libgridcpr's thread; the job has no signal to spare for it.
// XGCP-APPL-1, XGCP-TL-3
#[test]
fn a_callback_of_the_library_saves_the_program() {
    let Some(cpr) = Cpr::new("a_callback_of_the_library_saves", As::User) else {
        return;
    };
    let program = compile_with_library(&cpr, "tests/library/saver.c", "saver");
    let config = cpr.work.join("config");
    fs::create_dir_all(config.join("engines.d")).unwrap();
    let text = "name = \"told\"\ndriver = \"application\"\nclasses = [\"application\"]\n[properties]\n\
                level = \"application\"\nprograms = \"own-checkpoints\"\n[application]\ncallback = true\n\
                directory = \"%JOB_DIRECTORY%/app\"\n";
    fs::write(config.join("engines.d/told.toml"), text).unwrap();
    cpr.give(&config);
    let with = |arguments: &[&str]| cpr.cpr_with_config(&config, arguments);
    with(&["run", "-d", "--engine", "told", "--name", "sim", "--", &program]).good();
    wait_until(PATIENCE, "it counts", || numbers(&cpr.logs("sim")).len() > 5);
    with(&["checkpoint", "sim"]).good();
    let had = *numbers(&cpr.logs("sim")).last().unwrap();
    wait_until(PATIENCE, "it counts on", || {
        *numbers(&cpr.logs("sim")).last().unwrap() > had + 3
    });
    with(&["checkpoint", "--stop", "sim"]).good();
    let logged = numbers(&cpr.logs("sim"));
    with(&["restart", "-d", "sim"]).good();
    wait_until(PATIENCE, "it goes on", || {
        numbers(&cpr.logs("sim")).len() > logged.len()
    });
    let first = numbers(&cpr.logs("sim"))[logged.len()];
    assert!(
        first > had && first <= logged.last().unwrap() + 1,
        "{first} after {logged:?}"
    );
    // A program without any callback.
    with(&["run", "-d", "--engine", "told", "--name", "deaf", "--", "sleep", "1000"]).good();
    let refused = with(&["checkpoint", "deaf"]);
    assert_eq!(refused.code, UNSUPPORTED, "{}", refused.stderr);
    assert!(cpr.is_running("deaf"));
}

/// On a node of another name, which a UTS namespace makes.
// GCA-CTS-15, GCA-CTS-31
#[test]
fn an_engine_of_one_node_restarts_nothing_on_another() {
    const INCOMPATIBLE: i32 = 78;
    let Some(cpr) = Cpr::new("an_engine_of_one_node", As::Root) else {
        return;
    };
    let config = cpr.work.join("config");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    support::copy_tree(
        &std::path::Path::new(root).join("examples/engine"),
        &config.join("engines.d"),
    );
    let text = fs::read_to_string(config.join("engines.d/open-files.toml")).unwrap();
    let text = text
        .replace("open-files", "here-only")
        .replace("driver =", "restart = \"here\"\ndriver =");
    fs::write(config.join("engines.d/here-only.toml"), text).unwrap();
    let with = |arguments: &[&str]| cpr.cpr_with_config(&config, arguments);
    let shown = with(&["engines", "show", "here-only", "--json"]).good().json();
    assert_eq!(shown["restart"], "here", "{shown}");
    let chosen = with(&[
        "run",
        "--explain",
        "--engine",
        "here-only",
        "--need",
        "restart=anywhere",
        "--",
        "true",
    ]);
    assert_eq!(chosen.code, UNSUPPORTED, "{}", chosen.stderr);
    with(&[
        "run",
        "-d",
        "--engine",
        "here-only",
        "--name",
        "sim",
        "--",
        "sleep",
        "1000",
    ])
    .good();
    with(&["checkpoint", "--stop", "sim"]).good();
    let elsewhere = format!(
        "hostname elsewhere && GRIDCPR_CONFIG_DIRS={} exec {} restart -d sim",
        config.display(),
        cpr.binary().display()
    );
    let refused = cpr.program(&["unshare", "--uts", "sh", "-c", &elsewhere]);
    assert_eq!(refused.code, INCOMPATIBLE, "{}", refused.stderr);
    assert!(refused.stderr.contains("and this is elsewhere"), "{}", refused.stderr);
    with(&["restart", "-d", "sim"]).good();
}

//! libgridcpr in C programs: callbacks, critical sections, self-checkpoints and images, over checkpoint and restart.
//!
//! The programs are in `tests/library`; each is compiled with the library as a user would do it.

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::{As, Cpr, PATIENCE, wait_until};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// The directory with libgridcpr.so: that of this test program.
fn library_directory() -> PathBuf {
    // Named so that cargo builds it.
    let _ = gridcpr::start;
    let own = std::env::current_exe().expect("a program has a name");
    let directory = own.parent().expect("a program is in a directory").to_path_buf();
    assert!(
        directory.join("libgridcpr.so").exists(),
        "no library in {}",
        directory.display()
    );
    directory
}

/// Compiles a program of `tests/library` or `examples/c` into the test's directory, next to a copy of the library.
fn compile(cpr: &Cpr, source: &str) -> String {
    support::library::compile_with_library(cpr, source, "program")
}

struct Run {
    cpr: Cpr,
}

impl Run {
    /// Starts `callbacks.c` in a mode as job `j`.
    fn new(test: &str, user: As, mode: &str) -> Option<Run> {
        let cpr = Cpr::new(test, user)?;
        let program = compile(&cpr, "tests/library/callbacks.c");
        let directory = cpr.work.display().to_string();
        cpr.run_detached("j", &[], &[program.as_str(), &directory, mode]);
        let run = Run { cpr };
        run.wait_for("ready");
        Some(run)
    }

    fn wait_for(&self, file: &str) {
        let path = self.cpr.work.join(file);
        wait_until(Duration::from_secs(30), file, || path.exists());
    }

    fn touch(&self, file: &str) {
        fs::write(self.cpr.work.join(file), "").expect("a file can be made");
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.cpr.work.join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits for this many lines, and gives them and empties the log.
    #[track_caller]
    fn take_log(&self, lines: usize) -> Vec<String> {
        wait_until(
            Duration::from_secs(10),
            &format!("{lines} lines of {:?}", self.log()),
            || self.log().len() >= lines,
        );
        let log = self.log();
        fs::remove_file(self.cpr.work.join("log")).expect("the log can be removed");
        log
    }

    /// Lets the program end well; what it has printed.
    #[track_caller]
    fn end(&self) -> String {
        self.touch("go");
        self.touch("end");
        assert_eq!(self.cpr.wait("j"), 0);
        String::from_utf8_lossy(&self.cpr.logs("j")).into_owned()
    }

    /// Checkpoints and ends the job, and restarts it.
    fn restart(&self) {
        self.cpr.checkpoint("j", &["--stop"]);
        self.cpr.restart("j");
    }
}

const USERS: [As; 2] = [As::Root, As::User];

// LBNL-2.2.1.1 LBNL-2.2.1.2 LBNL-3.6.7 LBNL-3.6.7.1 LBNL-3.6.7.2 LBNL-3.6.7.3 XGCP-CB-1 XGCP-CB-6 XGCP-API-6
#[test]
fn callbacks_run_in_a_thread_in_their_order() {
    for user in USERS {
        let Some(run) = Run::new("callbacks thread", user, "thread") else {
            continue;
        };
        run.cpr.checkpoint("j", &[]);
        assert_eq!(
            run.take_log(4),
            ["two before", "one before", "one continue", "two continue"]
        );
        run.cpr.checkpoint("j", &["--stop"]);
        assert_eq!(run.take_log(2), ["two before", "one before"]);
        run.cpr.restart("j");
        assert_eq!(run.take_log(2), ["one restart", "two restart"]);
        // A restarted program is asked like any other.
        run.cpr.checkpoint("j", &[]);
        assert_eq!(
            run.take_log(4),
            ["two before", "one before", "one continue", "two continue"]
        );
        run.restart();
        assert_eq!(
            run.take_log(4),
            ["two before", "one before", "one restart", "two restart"]
        );
        let said = run.end();
        assert!(said.contains("restarted 1, 2 times, generation 4, image "), "{said}");
        assert!(said.contains("job j\nmarker: written before the checkpoint"), "{said}");
    }
}

#[test]
fn callbacks_run_in_a_signal_handler_of_their_thread() {
    for user in USERS {
        let Some(run) = Run::new("callbacks signal", user, "both") else {
            continue;
        };
        run.cpr.checkpoint("j", &[]);
        let before = ["two before", "one before", "s-two before", "s-one before"];
        let after = ["s-one", "s-two", "one", "two"];
        let expected: Vec<String> = before.iter().map(|s| (*s).to_owned()).collect();
        let told = |event: &str| after.map(|name| format!("{name} {event}")).to_vec();
        assert_eq!(run.take_log(8), [expected.clone(), told("continue")].concat());
        run.restart();
        assert_eq!(run.take_log(8), [expected, told("restart")].concat());
        run.end();
    }
}

// XGCP-CB-5
#[test]
fn a_callback_can_refuse_and_the_job_goes_on() {
    let Some(run) = Run::new("callbacks refuse", As::User, "refuse") else {
        return;
    };
    let ended = run.cpr.cpr(["checkpoint", "j"]);
    assert_eq!(ended.code, 69, "{}", ended.stderr);
    assert!(ended.stderr.contains("the solver holds a licence"), "{}", ended.stderr);
    assert_eq!(run.take_log(3), ["two before", "refuses before", "two continue failed"]);
    assert_eq!(run.cpr.cpr(["checkpoint", "j"]).code, 69, "as often as it is asked");
    run.end();

    let Some(run) = Run::new("callbacks later", As::User, "later") else {
        return;
    };
    let ended = run.cpr.cpr(["checkpoint", "j"]);
    assert_eq!(ended.code, 75, "{}", ended.stderr);
    assert!(ended.stderr.contains("a transfer is under way"), "{}", ended.stderr);
    run.end();
}

// XGCP-CB-5
#[test]
fn a_hung_callback_times_out_and_the_job_goes_on() {
    let Some(run) = Run::new("callbacks hang", As::User, "hang") else {
        return;
    };
    let begun = Instant::now();
    let ended = run.cpr.cpr(["checkpoint", "j", "--timeout", "1s"]);
    assert_eq!(ended.code, 76, "{}", ended.stderr);
    assert!(begun.elapsed() < Duration::from_secs(10));
    // That of the callback which ran before is told although the other still hangs.
    assert_eq!(run.take_log(3), ["two before", "hangs before", "two continue failed"]);
    assert_eq!(
        run.cpr.cpr(["checkpoint", "j", "--timeout", "1s"]).code,
        76,
        "it still hangs"
    );
    run.touch("go");
    // When it returns it is told, too, and checkpoints can be taken again.
    assert_eq!(run.take_log(1), ["hangs continue failed"]);
    wait_until(Duration::from_secs(10), "the callback has ended", || {
        run.cpr.cpr(["checkpoint", "j", "--timeout", "5s"]).code == 0
    });
    run.end();
}

// LBNL-2.1.2 LBNL-3.6.7.4 LBNL-3.6.7.5
#[test]
fn a_checkpoint_waits_for_critical_sections() {
    for user in USERS {
        let Some(run) = Run::new("section", user, "section") else {
            continue;
        };
        let ended = run.cpr.cpr(["checkpoint", "j", "--timeout", "500ms"]);
        assert_eq!(ended.code, 75, "{}", ended.stderr);
        assert!(ended.stderr.contains("critical section"), "{}", ended.stderr);
        assert_eq!(run.take_log(2), ["one before", "one continue failed"]);
        // One that has more time waits until the outer section is left.
        run.touch("go");
        run.cpr.checkpoint("j", &["--timeout", "20s"]);
        assert_eq!(run.take_log(3), ["one before", "section leaves", "one continue"]);
        run.end();
    }
}

// LBNL-3.6.7.4 LBNL-3.6.7.5 XGCP-COORD-17
#[test]
fn no_image_is_made_in_a_critical_section() {
    let Some(run) = Run::new("sections", As::User, "nested") else {
        return;
    };
    for _ in 0..5 {
        run.cpr.checkpoint("j", &[]);
    }
    for _ in 0..3 {
        run.restart();
        assert_eq!(run.take_log(1), ["halves restart"]);
    }
    run.end();
    assert_eq!(run.log(), [""; 0], "torn");
}

#[test]
fn children_and_new_programs_have_callbacks() {
    for (mode, processes) in [("fork", 2), ("many", 21)] {
        let Some(run) = Run::new("callbacks fork", As::User, mode) else {
            return;
        };
        run.cpr.checkpoint("j", &[]);
        let mut log = run.take_log(4 * processes);
        log.sort();
        let expected = |events: [&str; 2]| {
            let mut all = Vec::new();
            for name in ["one", "s-two"] {
                for event in events {
                    all.extend(vec![format!("{name} {event}"); processes]);
                }
            }
            all.sort();
            all
        };
        assert_eq!(log, expected(["before", "continue"]));
        run.restart();
        let mut log = run.take_log(4 * processes);
        log.sort();
        assert_eq!(log, expected(["before", "restart"]));
        run.end();
    }
    let Some(run) = Run::new("callbacks exec", As::User, "exec") else {
        return;
    };
    run.cpr.checkpoint("j", &[]);
    assert_eq!(
        run.take_log(4),
        ["two before", "one before", "one continue", "two continue"]
    );
    run.end();
}

// XGCP-CB-3
#[test]
fn what_a_callback_frees_is_not_in_the_image() {
    let Some(run) = Run::new("callbacks memory", As::User, "memory") else {
        return;
    };
    let report = run.cpr.checkpoint("j", &[]);
    assert!(report["bytes"].as_u64() < Some(24 << 20), "{report}");
    run.end();
}

// XGCP-API-9
#[test]
fn a_program_checkpoints_its_own_job() {
    for user in USERS {
        let Some(cpr) = Cpr::new("self-checkpoint", user) else {
            continue;
        };
        let program = compile(&cpr, "tests/library/itself.c");
        cpr.run_detached("j", &[], &[program.as_str(), "continue"]);
        assert_eq!(cpr.wait("j"), 0);
        let said = String::from_utf8_lossy(&cpr.logs("j")).into_owned();
        for number in 1..=3 {
            assert!(said.contains(&format!("{number} continued ")), "{said}");
        }
        let images: Vec<&str> = said.lines().filter_map(|line| line.split(' ').nth(2)).collect();
        assert_eq!(images.len(), 3);
        let listed = cpr.cpr(["images", "--json"]).good().json();
        let listed = listed["images"].as_array().expect("a list").clone();
        let listed: Vec<&str> = listed.iter().filter_map(|image| image["path"].as_str()).collect();
        assert!(images.iter().all(|image| listed.contains(image)), "{listed:?}");
        // The first image was made by the first call, which returns in it once more.
        let id = cpr.cpr(["inspect", "--json", images[0]]).good().json()["header"]["id"].clone();
        cpr.cpr(["restart", "-d", "--name", "k", images[0]]).good();
        assert_eq!(cpr.wait("k"), 0);
        // Its output goes into its own log, and not into that of the job it was.
        assert_eq!(String::from_utf8_lossy(&cpr.logs("j")), said);
        let said = String::from_utf8_lossy(&cpr.logs("k")).into_owned();
        let first = said.lines().next().unwrap_or_default();
        assert!(first.starts_with("1 restarted 1 1 ") && first.ends_with(" k"), "{said}");
        assert!(id.as_str().is_some_and(|id| first.contains(id)), "{said} {id}");
        assert!(said.contains("3 continued "), "{said}");
    }
}

// LBNL-3.6.8.4
#[test]
fn a_program_says_how_its_files_are_treated() {
    for (policy, result) in [(None, "one\ntwo\n"), (Some("append"), "one\nbetween\ntwo\n")] {
        let Some(cpr) = Cpr::new("file policies", As::User) else {
            return;
        };
        let program = compile(&cpr, "tests/library/policy.c");
        let words: Vec<&str> = std::iter::once(program.as_str()).chain(policy).collect();
        cpr.run_detached("j", &[], &words);
        wait_until(PATIENCE, "ready", || cpr.logs("j") == b"ready\n");
        // The policy is for whoever asks.
        cpr.checkpoint("j", &["--stop"]);
        let log = cpr.work.join("log");
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(&log)
            .expect("the log can be opened");
        file.write_all(b"between\n").expect("the log can be written");
        cpr.restart("j");
        fs::write(cpr.work.join("go"), "").expect("a file can be made");
        assert_eq!(cpr.wait("j"), 0, "{}", String::from_utf8_lossy(&cpr.logs("j")));
        assert_eq!(
            fs::read_to_string(&log).expect("the log can be read"),
            result,
            "{policy:?}"
        );
        if policy.is_some() {
            cpr.run_detached("k", &[], &[&program, "appendix"]);
            assert_eq!(cpr.wait("k"), 3);
            let said = String::from_utf8_lossy(&cpr.logs("k")).into_owned();
            assert!(said.starts_with("-64 ") && said.contains("is not a policy"), "{said}");
            let alone = cpr.program(&[&program, "append"]);
            assert!(alone.text().starts_with("-66 "), "outside of a job");
        }
    }
}

#[test]
fn a_program_ends_its_own_job_with_a_checkpoint() {
    let Some(cpr) = Cpr::new("self-stop", As::User) else {
        return;
    };
    let program = compile(&cpr, "tests/library/itself.c");
    cpr.run_detached("j", &[], &[program.as_str(), "stop"]);
    for _ in 0..3 {
        assert_eq!(cpr.wait("j"), 79, "{}", String::from_utf8_lossy(&cpr.logs("j")));
        cpr.restart("j");
    }
    assert_eq!(cpr.wait("j"), 0);
    let said = String::from_utf8_lossy(&cpr.logs("j")).into_owned();
    for number in 1..=3 {
        assert!(
            said.contains(&format!("{number} restarted {number} {number} ")),
            "{said}"
        );
    }
    // Outside of a job it is told so.
    let alone = cpr.program(&[&program, "outside"]).good().text();
    assert!(alone.contains("not part of a job"), "{alone}");
}

// LBNL-2.2.4A LBNL-3.6.3.1 LBNL-3.6.3.4 LBNL-3.6.3.4.a LBNL-3.6.3.4.b LBNL-3.6.3.4.c LBNL-3.6.3.4.d LBNL-3.6.3.2
#[test]
fn images_are_read_and_edited_from_c() {
    for user in USERS {
        let Some(cpr) = Cpr::new("image from C", user) else {
            continue;
        };
        let edited = compile(&cpr, "tests/library/edited.c");
        let program = format!("{edited}-edited");
        fs::rename(&edited, &program).expect("a file can be renamed");
        let tool = compile(&cpr, "tests/library/image.c");
        let (one, two) = (cpr.work.join("one"), cpr.work.join("two"));
        let now = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |t| t.as_nanos() as u64)
        };
        let command = ["env", "COLOUR=green", &program, &one.display().to_string()];
        cpr.run_detached("j", &[], &command);
        wait_until(Duration::from_secs(20), "ready", || cpr.logs("j") == b"ready\n");
        let before = now();
        let report = cpr.checkpoint("j", &["--stop"]);
        let after = now();
        let image = report["image"].as_str().expect("an image").to_owned();
        let shown = cpr.program(&[&tool, "show", &image]).good().text();
        let value = |name: &str| {
            let line = shown.lines().find(|line| line.starts_with(&format!("{name} ")));
            line.map(|line| line[name.len() + 1..].to_owned()).unwrap_or_default()
        };
        assert_eq!(value("id"), report["image_id"].as_str().unwrap_or_default());
        let time: u64 = value("time_ns").parse().unwrap_or(0);
        assert!(before <= time && time <= after, "{shown}");
        let uid = if user == As::Root { "0" } else { &value("owner") };
        assert_eq!((value("initiator").as_str(), value("owner").as_str()), (uid, uid));
        let uname = cpr.program(&["uname", "-snrvm"]).good().text();
        assert_eq!(value("uname"), uname.trim_end());
        assert_eq!(value("architecture"), std::env::consts::ARCH);
        assert_eq!(value("job"), "j");
        assert!(shown.contains("at its rip") && !shown.contains("WRONG"), "{shown}");
        assert!(shown.contains(&format!("regular at 6 {}\n", one.display())), "{shown}");
        assert!(shown.contains("region stack "), "{shown}");
        let json: serde_json::Value = serde_json::from_str(&value("json")).expect("JSON");
        assert_eq!(json["checkpoint"]["job"], "j");

        fs::copy(&one, &two).expect("a file can be copied");
        cpr.give(&two);
        let new = cpr.work.join("new.cpr").display().to_string();
        let (from, to) = (one.display().to_string(), two.display().to_string());
        cpr.program(&[&tool, "edit", &image, &new, &from, &to]).good();
        cpr.cpr(["verify", &new]).good();
        cpr.cpr(["verify", &image]).good();
        let shown = cpr.program(&[&tool, "show", &new]).good().text();
        assert!(
            shown.contains(&format!("edited_from {}", report["image_id"].as_str().unwrap_or("?"))),
            "{shown}"
        );
        assert!(
            !shown.contains(
                report["image_id"]
                    .as_str()
                    .map(|id| format!("id {id}\nedited"))
                    .unwrap_or_default()
                    .as_str()
            )
        );
        cpr.cpr(["restart", "-d", "--name", "k", &new]).good();
        fs::write(cpr.work.join("one.end"), "").expect("a file can be made");
        assert_eq!(cpr.wait("k"), 0);
        let said = String::from_utf8_lossy(&cpr.logs("k")).into_owned();
        assert_eq!(said, "red\nword: after the edit;;;\n77\n");
        assert_eq!(fs::read_to_string(&one).ok().as_deref(), Some("first\n"));
        assert_eq!(fs::read_to_string(&two).ok().as_deref(), Some("first\nsecond\n"));
    }
}

#[test]
fn the_command_edits_images() {
    let Some(cpr) = Cpr::new("cpr edit", As::User) else {
        return;
    };
    let program = compile(&cpr, "tests/library/edited.c");
    let (one, two) = (
        cpr.work.join("one").display().to_string(),
        cpr.work.join("two").display().to_string(),
    );
    cpr.run_detached("j", &[], &["env", "COLOUR=green", &program, &one]);
    wait_until(Duration::from_secs(20), "ready", || cpr.logs("j") == b"ready\n");
    let report = cpr.checkpoint("j", &["--stop"]);
    fs::copy(&one, &two).expect("a file can be copied");
    cpr.give(Path::new(&two));
    let image = report["image"].as_str().expect("an image");
    let replace = format!("{one}={two}");
    let made = cpr
        .cpr([
            "edit",
            image,
            "-o",
            "new.cpr",
            "--replace-path",
            &replace,
            "--environment",
            "COLOUR=blue",
            "--set",
            "/processes/0/umask=18",
            "--json",
        ])
        .good()
        .json();
    assert_eq!(made["edited_from"], report["image_id"]);
    assert_ne!(made["image_id"], report["image_id"]);
    assert_eq!(
        cpr.cpr(["edit", image, "-o", "new.cpr"]).code,
        67,
        "files are not replaced"
    );
    assert_eq!(
        cpr.cpr(["edit", image, "-o", "other.cpr", "--replace-path", "/no/such=/x"])
            .code,
        66
    );
    assert_eq!(
        cpr.cpr(["edit", image, "-o", "other.cpr", "--set", "/processes/0/pid=-5"])
            .code,
        64
    );
    assert!(!cpr.work.join("other.cpr").exists());
    cpr.cpr(["restart", "-d", "--name", "k", "./new.cpr"]).good();
    fs::write(format!("{one}.end"), "").expect("a file can be made");
    assert_eq!(cpr.wait("k"), 0);
    let said = String::from_utf8_lossy(&cpr.logs("k")).into_owned();
    assert_eq!(said, "blue\nword: before the edit;;\n22\n");
    assert_eq!(fs::read_to_string(&two).ok().as_deref(), Some("first\nsecond\n"));
}

#[test]
fn the_example_goes_on_to_the_same_result() {
    let Some(cpr) = Cpr::new("heat", As::User) else { return };
    let program = compile(&cpr, "examples/c/heat.c");
    cpr.program(&[&program, "100", "20000", "straight"]).good();
    cpr.run_detached("heat", &[], &[program.as_str(), "100", "20000", "broken", "5000"]);
    let first = cpr.state_dir.join("jobs/heat/images/000001.cpr");
    wait_until(Duration::from_secs(60), "the program has checkpointed itself", || {
        first.exists()
    });
    cpr.checkpoint("heat", &["--stop"]);
    cpr.restart("heat");
    assert_eq!(cpr.wait("heat"), 0, "{}", String::from_utf8_lossy(&cpr.logs("heat")));
    let read = |name: &str| fs::read(cpr.work.join(name)).expect("a result can be read");
    assert!(read("straight") == read("broken"), "the results differ");
    let said = String::from_utf8_lossy(&cpr.logs("heat")).into_owned();
    assert!(said.contains("heat: restarted, for the 1. time"), "{said}");
}

/// The lines of `gridcpr.abi` that begin with a word, without it.
fn committed(kind: &str) -> Vec<String> {
    let path = Path::new(ROOT).join("crates/gridcpr/include/gridcpr.abi");
    let text = fs::read_to_string(path).expect("the list can be read");
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' '));
    lines.map(str::to_owned).collect()
}

/// Commands, those for administrators included, have no other way to images, checkpoints of programs and grids than the
/// library that programs have.
// GFD93-LIB-9
#[test]
fn commands_use_the_library_that_programs_use() {
    let crates = Path::new(ROOT).join("crates");
    let manifest = fs::read_to_string(crates.join("cli/Cargo.toml")).expect("cpr has a manifest");
    let (own, _) = manifest.split_once("[dev-dependencies]").expect("tests need more");
    let names: Vec<&str> = own
        .lines()
        .filter_map(|line| line.split_once(['.', ' ']).map(|(name, _)| name))
        .collect();
    assert!(names.contains(&"gridcpr"), "{names:?}");
    for other in [
        "cpr-api",
        "cpr-app",
        "cpr-image",
        "cpr-grid",
        "hyper",
        "rustls",
        "sqlx",
        "ciborium",
    ] {
        assert!(!names.contains(&other), "cpr depends on {other}");
    }
    let mut waiting = vec![crates.join("cli/src")];
    let mut files = 0;
    while let Some(directory) = waiting.pop() {
        for path in fs::read_dir(directory)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
        {
            if path.is_dir() {
                waiting.push(path);
                continue;
            }
            files += 1;
            let text = fs::read_to_string(&path).expect("a source");
            for way in ["TcpStream", "UnixStream", "sqlite", "tests::"] {
                assert!(!text.contains(way), "{} uses {way}", path.display());
            }
        }
    }
    assert!(files > 30);
}

#[test]
fn the_abi_is_as_committed() {
    let Some(cpr) = Cpr::new("ABI", As::User) else { return };
    let library = library_directory().join("libgridcpr.so").display().to_string();
    let symbols = cpr
        .program(&["nm", "-D", "--defined-only", "--format=posix", &library])
        .good()
        .text();
    let mut symbols: Vec<&str> = symbols.lines().filter_map(|line| line.split(' ').next()).collect();
    symbols.sort_unstable();
    assert_eq!(symbols, committed("symbol"), "symbols of the shared library");
    let dynamic = cpr.program(&["readelf", "-d", &library]).good().text();
    assert!(
        dynamic.contains("[libgridcpr.so.0]") && dynamic.contains("NODELETE"),
        "{dynamic}"
    );
    // What the compiler makes of the header; that the library agrees is tested in its own sources.
    let mut source = String::from("#include <gridcpr.h>\n#include <stdio.h>\nint main(void) {\n");
    for line in committed("struct") {
        let name = line.split(' ').next().unwrap_or_default();
        source += &format!("printf(\"{name} %zu\\n\", sizeof({name}));\n");
    }
    for line in committed("field") {
        let words: Vec<&str> = line.split(' ').collect();
        let (name, field) = (words[0], words[1]);
        source += &format!("printf(\"{name} {field} %zu\\n\", offsetof({name}, {field}));\n");
    }
    source += "return 0; }\n";
    let file = cpr.work.join("layout.c");
    fs::write(&file, source).expect("a file can be written");
    let program = compile(&cpr, &file.display().to_string());
    let said = cpr.program(&[&program]).good().text();
    let expected = [committed("struct"), committed("field")].concat();
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn the_header_is_cplusplus_too() {
    let Some(cpr) = Cpr::new("C++", As::User) else { return };
    if std::process::Command::new("g++").arg("--version").output().is_err() {
        return support::note_skip("C++", "needs g++");
    }
    let header = Path::new(ROOT)
        .join("crates/gridcpr/include/gridcpr.h")
        .display()
        .to_string();
    cpr.program(&[
        "g++",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsyntax-only",
        "-x",
        "c++",
        &header,
    ])
    .good();
}

#[test]
fn valgrind_finds_nothing() {
    let Some(cpr) = Cpr::new("valgrind", As::User) else {
        return;
    };
    if std::process::Command::new("valgrind")
        .arg("--version")
        .output()
        .is_err()
    {
        return support::note_skip("valgrind", "needs valgrind");
    }
    let program = compile(&cpr, "tests/library/callbacks.c");
    let directory = cpr.work.display().to_string();
    fs::write(cpr.work.join("go"), "").expect("a file can be made");
    fs::write(cpr.work.join("end"), "").expect("a file can be made");
    for mode in ["both", "section", "nested", "fork"] {
        cpr.program(&["valgrind", "-q", "--error-exitcode=9", &program, &directory, mode])
            .good();
    }
    // Images: an image to read is that of a job.
    cpr.run_detached("j", &[], &["sleep", "1000"]);
    let report = cpr.checkpoint("j", &["--stop"]);
    let tool = compile(&cpr, "tests/library/image.c");
    let image = report["image"].as_str().expect("an image");
    cpr.program(&[
        "valgrind",
        "-q",
        "--error-exitcode=9",
        "--leak-check=full",
        "--errors-for-leak-kinds=definite",
        "--show-leak-kinds=definite",
        &tool,
        "show",
        image,
    ])
    .good();
}

// LBNL-3.6.7.4
#[test]
fn what_a_process_writes_into_its_page_harms_nobody() {
    let Some(cpr) = Cpr::new("hostile page", As::User) else {
        return;
    };
    let program = compile(&cpr, "tests/library/liar.c");
    for mode in 0..6 {
        let name = format!("j{mode}");
        cpr.run_detached(&name, &[], &[program.as_str(), &mode.to_string()]);
        wait_until(Duration::from_secs(20), "ready", || cpr.logs(&name) == b"ready\n");
        let begun = Instant::now();
        let ended = cpr.cpr(["checkpoint", &name, "--timeout", "500ms"]);
        assert!(
            [0, 69, 75, 76].contains(&ended.code),
            "{mode}: {} {}",
            ended.code,
            ended.stderr
        );
        assert!(!ended.stderr.contains('\u{1b}'), "{mode}: {:?}", ended.stderr);
        assert!(begun.elapsed() < Duration::from_secs(15), "{mode}");
        assert!(cpr.is_running(&name), "{mode}: it goes on");
        cpr.cpr(["kill", "-s", "KILL", &name]);
    }
}

// LBNL-1.2.4.2.c LBNL-2.4.1 XGCP-CB-2
#[test]
fn a_callback_deals_with_a_connection() {
    use std::io::Read;
    let Some(cpr) = Cpr::new("callbacks network", As::User) else {
        return;
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it has an address").port();
    let program = compile(&cpr, "tests/library/callbacks.c");
    let directory = cpr.work.display().to_string();
    let port = format!("PORT={port}");
    cpr.run_detached("j", &[], &["env", &port, &program, &directory, "network"]);
    // The listener's backlog keeps what the program connects and says; the first connection is closed by the callback.
    let said = |text: &str| {
        let (mut peer, _) = listener.accept().expect("a connection");
        peer.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let mut byte = [0u8; 1];
        peer.read_exact(&mut byte)
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        peer
    };
    let mut first = said("at the start");
    wait_until(Duration::from_secs(20), "ready", || cpr.work.join("ready").exists());
    cpr.checkpoint("j", &[]);
    assert_eq!(first.read(&mut [0u8; 1]).ok(), Some(0), "it was closed");
    let _second = said("when it goes on");
    cpr.checkpoint("j", &["--stop"]);
    cpr.restart("j");
    let _third = said("restarted");
    fs::write(cpr.work.join("end"), "").expect("a file can be made");
    assert_eq!(cpr.wait("j"), 0);
}

// XGCP-CB-5
#[test]
fn callbacks_are_told_when_the_checkpointer_dies() {
    let Some(run) = Run::new("checkpointer dies", As::User, "hang") else {
        return;
    };
    let mut command = run.cpr.command(run.cpr.binary());
    command.args(["checkpoint", "j", "--timeout", "3s"]);
    let mut front = command.spawn().expect("cpr can be started");
    wait_until(Duration::from_secs(10), "the callback hangs", || run.log().len() == 2);
    // The command, and whoever works for it inside the job.
    let status = run.cpr.program(&["sh", "-c", WORKERS]);
    assert!(!status.text().is_empty(), "no worker was found");
    let _ = front.kill();
    let _ = front.wait();
    wait_until(Duration::from_secs(30), "the others are told", || run.log().len() >= 3);
    assert_eq!(run.take_log(3), ["two before", "hangs before", "two continue failed"]);
    run.touch("go");
    assert_eq!(run.take_log(1), ["hangs continue failed"]);
    wait_until(Duration::from_secs(10), "checkpoints are taken again", || {
        run.cpr.cpr(["checkpoint", "j"]).code == 0
    });
    run.end();
}

/// Kills the workers of our jobs, and prints their PIDs.
const WORKERS: &str = r#"for p in /proc/[0-9]*; do
    if [ "$(cat $p/comm 2>/dev/null)" = cpr-worker ] &&
        tr '\0' '\n' <$p/environ 2>/dev/null | grep -qxF "GRIDCPR_STATE_DIR=$GRIDCPR_STATE_DIR"; then
        kill -KILL ${p#/proc/} && echo ${p#/proc/}
    fi
done"#;

// XGCP-CB-4
#[test]
fn a_process_that_is_no_job_has_callbacks_too() {
    let Some(cpr) = Cpr::new("callbacks PID", As::Root) else {
        return;
    };
    let program = compile(&cpr, "tests/library/callbacks.c");
    let mut command = cpr.command(&program);
    command
        .arg(&cpr.work)
        .arg("both")
        .stdout(std::process::Stdio::null())
        .stdin(std::process::Stdio::null());
    let mut child = command.spawn().expect("the program can be started");
    wait_until(Duration::from_secs(20), "ready", || cpr.work.join("ready").exists());
    let pid = child.id().to_string();
    cpr.cpr(["checkpoint", &pid, "-o", "it.cpr"]).good();
    wait_until(Duration::from_secs(10), "callbacks", || {
        fs::read_to_string(cpr.work.join("log"))
            .unwrap_or_default()
            .lines()
            .count()
            == 8
    });
    fs::write(cpr.work.join("end"), "").expect("a file can be made");
    assert!(child.wait().expect("a child can be waited for").success());
}

//! Programs that reach a grid, and checkpoints of their own, through libgridcpr and in no other way.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::lab::Lab;
use support::s3::Server;
use support::*;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// Another user than the one whose jobs they are.
const STRANGER: u32 = 65533;

/// Puts the library where programs of users find it.
fn library(site: &Site) -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_cprd")).with_file_name("libgridcpr.so");
    let library = site.path("libgridcpr.so.0");
    fs::copy(built, &library).unwrap();
    library
}

/// Compiles a C program of the source tree with the library; none, after saying so, where there is no compiler.
fn compiled(site: &Site, name: &str) -> Option<PathBuf> {
    let program = site.path(name);
    let library = library(site);
    let mut command = Command::new("gcc");
    command.args(["-O1", "-Wall", "-Wextra", "-Werror", "-I"]);
    command.arg(format!("{ROOT}/crates/gridcpr/include"));
    command
        .arg("-o")
        .arg(&program)
        .arg(format!("{ROOT}/tests/library/{name}.c"));
    command
        .arg(&library)
        .arg(format!("-Wl,-rpath,{}", site.path("").display()));
    let Ok(output) = command.output() else {
        skipped("programs in C with the library: there is no gcc");
        return None;
    };
    assert!(output.status.success(), "{output:?}");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Some(program)
}

fn good(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The functions of other libraries that a program calls. What makes connections, and runs programs, is not among them.
fn calls(program: &Path) -> Option<Vec<String>> {
    let output = Command::new("nm").args(["-D", "-u"]).arg(program).output().ok()?;
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter_map(|line| line.split_whitespace().last());
    Some(names.map(|name| name.split('@').next().unwrap().to_string()).collect())
}

// GFD93-LIB-10, GFD93-API-5, GFD93-INT-CTread, GFD93-INT-CTwrite, GFD93-WF-4.3, GFD93-CT-11
#[test]
fn each_category_of_functions_is_had_by_a_program_that_calls_the_library_alone() {
    if !am_root() {
        return skipped("hosts that are namespaces: only root can make them");
    }
    let lab = Lab::new(2, "operators = ['nobody']\ncopies = 1", "");
    let Some(program) = compiled(&lab.site, "categories") else {
        return;
    };
    if let Some(calls) = calls(&program) {
        let own = calls.iter().filter(|name| name.starts_with("gridcpr_")).count();
        assert!(own > 10, "{calls:?}");
        let others = [
            "socket",
            "connect",
            "open",
            "openat",
            "system",
            "fork",
            "exec",
            "posix_spawn",
            "popen",
        ];
        for name in &calls {
            assert!(!others.contains(&name.as_str()), "{name}");
        }
    }
    let run = |uid: u32, arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args([format!("--reuid={uid}"), format!("--regid={uid}")])
            .args(["--clear-groups", "--"])
            .arg(&program)
            .args(arguments)
            .current_dir(lab.site.path("work"))
            .env("GRIDCPR_CPR", lab.site.path("cpr"))
            .env("GRIDCPR_GRID", format!("unix:{}", lab.site.path("cprd.sock").display()))
            .output()
            .unwrap()
    };
    let user = |arguments: &[&str]| good(&run(NOBODY, arguments));
    let base = lab.site.path("work/base").display().to_string();
    let to = lab.site.path("work/elsewhere").display().to_string();
    user(&["state", &base]);
    user(&["jobs"]);
    assert_eq!(lab.site.output("by-library"), "done\n");

    let id = lab
        .site
        .submit("out", &["--node", "n1", "--keep", "5"], &counter(10_000));
    lab.site.wait_for_count("out", 5);
    lab.site.wait_for_state(&id, "running");
    let job = format!("@{id}");
    let first = lab.site.json(&["checkpoint", &job]);
    let second = lab.site.json(&["checkpoint", &job]);
    user(&["data", &base, &id]);
    let image = |node: &str, id: &serde_json::Value| lab.site.path(&format!("{node}/users/{NOBODY}/images/{id}.cpr"));
    wait_until("it is gone", || !image("n1", &first["id"]).exists());

    user(&["whole", &base]);
    let number = second["id"].to_string();
    assert!(!image("n2", &second["id"]).exists());
    user(&["transport", &number, "n2", &base, &to]);
    assert_eq!(
        fs::read(image("n1", &second["id"])).unwrap(),
        fs::read(image("n2", &second["id"])).unwrap()
    );
    // CPRtransfer, CTread, CTwrite and CPRupdate, and each of them once: what a replication is.
    let log = |name: &str| fs::read_to_string(lab.site.path(&format!("{name}.log"))).unwrap();
    let asked = format!("audit: nobody POST /v1/checkpoints/{number}/copies: 200");
    let read = format!("audit: node n2 reads image {number} with a ticket for it");
    let written = format!("image {number} has come from n1, has the hash that it should have, and is on disk");
    for (name, line) in [("grid", &asked), ("n1", &read), ("n2", &written)] {
        let text = log(name);
        assert_eq!(text.matches(line.as_str()).count(), 1, "{line}: {text}");
    }
    assert!(!log("n2").contains("reads image") && !log("n1").contains("has come"));
    let recorded = lab.site.text(&["events", "--job", &id, "--kind", "checkpoint.copied"]);
    assert_eq!(recorded.lines().count(), 1, "{recorded}");
    assert!(
        recorded.contains(&format!("n2 holds a copy of checkpoint {number}")),
        "{recorded}"
    );

    // What is altered on its way is never taken for the image, and nobody is told that it is there.
    let third = lab.site.json(&["checkpoint", &job]);
    let mut bytes = fs::read(image("n1", &third["id"])).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(image("n1", &third["id"]), bytes).unwrap();
    let third = third["id"].to_string();
    lab.site.text(&["transfer", &third, "n2"]);
    wait_until("it is found out", || {
        let text = log("n2");
        text.contains(&format!("fetching checkpoint {third} from n1: "))
            && text.contains("another hash than it should have")
    });
    assert!(!lab.site.path(&format!("n2/users/{NOBODY}/images/{third}.cpr")).exists());
    let recorded = lab.site.text(&["events", "--job", &id, "--kind", "checkpoint.copied"]);
    assert!(!recorded.contains(&format!("checkpoint {third} ")), "{recorded}");

    user(&["account"]);
    let outsider = run(STRANGER, &["stranger", &id, "n1"]);
    assert!(outsider.status.success(), "{outsider:?}");

    // Last, because n1 gets no more jobs then.
    let words = [program.to_str().unwrap(), "failure"];
    let waits = lab.site.submit("told", &["--node", "n1"], &words);
    wait_until("it waits", || lab.site.output("told") == "ready\n");
    user(&["fault", "n1", "smoke"]);
    wait_until("it is told", || {
        lab.site.output("told").contains("told: node n1 is failing: smoke")
    });
    lab.site.text(&["cancel", &id]);
    lab.site.cpr(&["cancel", &waits]);
}

// GFD93-SM-14
#[test]
fn what_is_not_needed_is_found_and_let_go_by_a_users_program_from_another_machine() {
    if !am_root() {
        return skipped("hosts that are namespaces: only root can make them");
    }
    let lab = Lab::new(2, "", "");
    lab.site.issue("ca", &["nobody"]);
    let key = lab.site.path("ca-issued/nobody.key");
    std::os::unix::fs::chown(&key, Some(NOBODY), Some(NOBODY)).unwrap();
    // It has no other way.
    let source = fs::read_to_string(format!("{ROOT}/examples/batch/cleaner.py")).unwrap();
    let imports: Vec<&str> = source.lines().filter(|line| line.contains("import ")).collect();
    assert_eq!(imports, ["import sys", "import gridcpr"]);
    let (program, package) = (lab.site.path("cleaner.py"), lab.site.path("python"));
    fs::write(&program, source).unwrap();
    fs::create_dir_all(package.join("gridcpr")).unwrap();
    let module = format!("{ROOT}/bindings/python/gridcpr/__init__.py");
    fs::copy(module, package.join("gridcpr/__init__.py")).unwrap();
    let library = library(&lab.site);

    let ids = ["one", "two"].map(|name| {
        let id = lab.site.submit(name, &["--keep", "9"], &counter(10_000));
        lab.site.wait_for_count(name, 3);
        lab.site.wait_for_state(&id, "running");
        for _ in 0..3 {
            lab.site.json(&["checkpoint", &format!("@{id}")]);
        }
        id
    });
    let of = |id: &str| -> Vec<i64> {
        let list = lab.site.json(&["checkpoints", id]);
        let list = list["checkpoints"].as_array().unwrap().iter();
        list.map(|known| known["id"].as_i64().unwrap()).collect()
    };
    // One goes on from its oldest: that is needed, though it is old.
    let oldest = of(&ids[0])[0].to_string();
    lab.site.json(&["suspend", &format!("@{}", ids[0])]);
    lab.site.text(&["recover", &ids[0], "--from", &oldest]);
    lab.site.wait_for_state(&ids[0], "running");
    let before = ids.each_ref().map(|id| of(id));
    let run = |certificate: &str| {
        let python = Path::new("/usr/bin/python3");
        let mut command = lab.user_on("n2", certificate, python);
        command.arg(&program).arg("2").env("PYTHONPATH", &package);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
            .env("GRIDCPR_LIBRARY", &library)
            .env("GRIDCPR_CPR", lab.site.path("cpr"));
        command.output().unwrap()
    };
    let said = good(&run("nobody"));
    let kept = |all: &[i64], more: Option<i64>| -> Vec<i64> {
        let newest = all.len() - 2;
        let stays = |(at, id): (usize, &i64)| (at >= newest || Some(*id) == more).then_some(*id);
        all.iter().enumerate().filter_map(stays).collect()
    };
    assert_eq!(of(&ids[0]), kept(&before[0], oldest.parse().ok()), "{said}");
    assert_eq!(of(&ids[1]), kept(&before[1], None), "{said}");
    assert!(said.contains(&format!("{oldest} of job {} stays", ids[0])), "{said}");
    // Their images go, too, and the records say that they were let go.
    let gone = before
        .concat()
        .into_iter()
        .filter(|id| !ids.iter().any(|job| of(job).contains(id)));
    let gone: Vec<i64> = gone.collect();
    assert!(gone.len() >= 2, "{before:?}");
    wait_until("the images are gone", || {
        let at = |node: &str, id: i64| {
            lab.site
                .path(&format!("{node}/users/{NOBODY}/images/{id}.cpr"))
                .exists()
        };
        !gone.iter().any(|id| at("n1", *id) || at("n2", *id))
    });
    let all = lab.site.json(&["checkpoints", "--all"]);
    for id in &gone {
        let known = all["checkpoints"]
            .as_array()
            .unwrap()
            .iter()
            .find(|known| known["id"] == *id);
        assert_eq!(known.unwrap()["state"], "freed");
    }
    // Again there is nothing to do; and who is nobody of the grid does nothing.
    assert!(!good(&run("nobody")).contains("goes"));
    lab.site.ca("strange", &["init"]);
    let stranger = lab.site.issue("strange", &["nobody"]).join("nobody");
    for end in ["pem", "key"] {
        let from = stranger.with_extension(end);
        let to = lab.site.path(&format!("ca-issued/strange.{end}"));
        fs::copy(from, &to).unwrap();
        std::os::unix::fs::chown(&to, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    assert!(!run("strange").status.success());
    for id in ids {
        lab.site.text(&["cancel", &id]);
    }
}

/// An engine for programs that write their state when libgridcpr tells them to.
const ASKED: &str = "
name = 'asked'
driver = 'application'
classes = ['application']
[properties]
level = 'application'
programs = 'own-checkpoints'
[application]
callback = true
directory = '%JOB_DIRECTORY%/app'
";

/// Runs the program where this configuration keeps checkpoints, takes away what is held besides, and lets it go on.
fn kept_and_gone_on(site: &mut Site, program: &Path, place: &dyn Fn(&Site, &serde_json::Value) -> PathBuf, lose: bool) {
    let engines = site.path("engines/engines.d");
    fs::create_dir_all(&engines).unwrap();
    fs::write(engines.join("asked.toml"), ASKED).unwrap();
    let config = site.path("all.toml");
    let mut command = site.cprd(&["--config", config.to_str().unwrap(), "all"]);
    command.env("GRIDCPR_CONFIG_DIRS", site.path("engines"));
    site.start_command("all", command);
    let id = site.submit("out", &["--engine", "asked"], &[program.to_str().unwrap(), "150"]);
    site.wait_for_count("out", 20);
    site.wait_for_state(&id, "running");
    let made = site.json(&["checkpoint", &format!("@{id}")]);
    assert_eq!(made["state"], "complete", "{made}");
    let place = place(site, &made["id"]);
    assert!(place.exists(), "{place:?}: {made}{}", site.told());
    let at = site.output("out").lines().count();
    site.json(&["suspend", &format!("@{id}")]);
    let newest = site.json(&["checkpoints", &id])["checkpoints"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()["id"]
        .clone();
    if lose {
        let uid = if am_root() {
            NOBODY
        } else {
            rustix::process::geteuid().as_raw()
        };
        fs::remove_file(site.path(&format!("node/users/{uid}/images/{newest}.cpr"))).unwrap();
        wait_until("the loss is noticed", || {
            let lost = site.text(&["events", "--job", &id, "--kind", "checkpoint.copy-lost"]);
            lost.contains(&format!("checkpoint {newest} "))
        });
    }
    site.text(&["recover", &id]);
    assert!(
        site.cpr(&["wait", &format!("@{id}")]).status.success(),
        "{}",
        site.told()
    );
    let numbers: Vec<u32> = site.output("out").lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers.last(), Some(&150));
    assert_eq!(
        numbers.iter().filter(|number| **number == 1).count(),
        1,
        "it did not begin anew"
    );
    assert!(at >= 20 && site.job(&id)["incarnation"] == 2);
}

// GFD93-LIB-1, GFD93-RES-2, GFD93-CT-10
#[test]
fn a_program_that_was_built_once_runs_wherever_its_checkpoints_are_kept() {
    let uid = if am_root() {
        NOBODY
    } else {
        rustix::process::geteuid().as_raw()
    };
    let image = |below: &Path, id: &serde_json::Value| below.join(format!("users/{uid}/images/{id}.cpr"));
    // Files of a directory.
    let mut site = Site::new();
    let Some(program) = compiled(&site, "keeps") else {
        return;
    };
    site.configure_all("");
    kept_and_gone_on(&mut site, &program, &|site, id| image(&site.path("node"), id), false);
    let built = fs::read(&program).unwrap();
    // Memory.
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::set_permissions(memory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut other = Site::new();
    other.configure_all("");
    let config = fs::read_to_string(other.path("all.toml")).unwrap();
    let own = format!("directory = '{}'", other.path("node").display());
    assert!(config.contains(&own), "{config}");
    let config = config.replace(&own, &format!("directory = '{}'", memory.path().display()));
    fs::write(other.path("all.toml"), config).unwrap();
    kept_and_gone_on(&mut other, &program, &|_, id| image(memory.path(), id), false);
    other.kill("all");
    // A directory that nodes share.
    let mut shared = Site::new();
    fs::create_dir(shared.path("store")).unwrap();
    shared.configure_all("store = 'DIR/store'");
    let config = fs::read_to_string(shared.path("all.toml")).unwrap();
    shared.configure("all.toml", &format!("{config}store = 'DIR/store'\n"));
    kept_and_gone_on(
        &mut shared,
        &program,
        &|site, id| site.path(&format!("store/{id}.cpr")),
        true,
    );
    shared.kill("all");
    // Objects of a bucket.
    let mut third = Site::new();
    let Some(server) = Server::start(&third) else {
        return skipped("the program with a bucket: s3s-fs is not installed");
    };
    fs::write(third.path("keys"), "ACCESS\nSECRET\n").unwrap();
    third.configure_all("store = 's3://images/grid'");
    let config = fs::read_to_string(third.path("all.toml")).unwrap();
    let s3 = format!("[s3]\nendpoint = 'http://{}'\nkey_file = 'DIR/keys'\n", server.address);
    third.configure("all.toml", &format!("{config}store = 's3://images/grid'\n{s3}"));
    kept_and_gone_on(
        &mut third,
        &program,
        &|site, id| site.path(&format!("s3/images/grid/{id}.cpr")),
        true,
    );
    assert_eq!(fs::read(&program).unwrap(), built);
}

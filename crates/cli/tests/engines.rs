//! Engines from outside: what there is, and how one is chosen.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use support::{As, Cpr};

fn write(path: &Path, text: &str) {
    let directory = path.parent().unwrap();
    fs::create_dir_all(directory).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let found = list.as_array().unwrap().iter().find(|entry| entry["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list}"))
}

// GCA-UC-5.4.1, GCA-CLASS-8, GCA-CTS-1, GCA-CTS-17, GCA-CTS-18, GCA-CTS-19, GCA-CTS-20, GCA-UC-5.4.4, GCA-UC-5.5.1,
// XGCP-TL-1
#[test]
fn engines_and_classes_are_listed() {
    let Some(cpr) = Cpr::new("engines_and_classes_are_listed", As::User) else {
        return;
    };
    let config = cpr.work.join("config");
    write(
        &config.join("classes.d/blue.toml"),
        "name = \"blue\"\n[requires]\ncolour = \"blue\"\nshade = \"dark\"\n",
    );
    write(
        &config.join("engines.d/paint.toml"),
        "name = \"paint\"\ndriver = \"native\"\n[properties]\ncolour = [\"red\", \"blue\"]\nshade = [\"matt\", \"dark\"]\n",
    );
    write(&config.join("engines.d/bad.toml"), "name = \"bad\"\n");
    cpr.give(&config);
    let listed = cpr.cpr_with_config(&config, ["engines", "--json"]).good();
    let engines = &listed.json()["engines"];
    let native = named(engines, "native");
    assert_eq!(native["works"], true, "{native}");
    assert!(native["version"].is_string(), "{native}");
    assert!(
        native["classes"].as_array().unwrap().contains(&json!("basic")),
        "{native}"
    );
    assert_eq!(named(engines, "paint")["classes"], json!(["blue"]));
    assert_eq!(named(engines, "paint")["properties"]["colour"], json!(["red", "blue"]));
    let problems = &listed.json()["problems"];
    assert!(
        problems[0]["file"].as_str().unwrap().ends_with("bad.toml"),
        "{problems}"
    );
    assert!(
        listed
            .stderr
            .contains("bad.toml: not a descriptor: missing field `driver`"),
        "{}",
        listed.stderr
    );
    let shown = cpr
        .cpr_with_config(&config, ["engines", "show", "paint", "--json"])
        .good()
        .json();
    assert_eq!(shown, *named(engines, "paint"));
    let text = cpr.cpr_with_config(&config, ["engines", "show", "paint"]).good().text();
    assert!(text.contains("\n  colour=red,blue\n"), "{text}");
    for (name, driver) in [
        ("native", "native"),
        ("criu", "criu"),
        ("qemu", "qemu"),
        ("paint", "native"),
    ] {
        assert_eq!(named(engines, name)["driver"], driver);
    }
    let classes = cpr.cpr_with_config(&config, ["classes", "--json"]).good().json();
    assert!(
        named(&classes["classes"], "basic")["members"]
            .as_array()
            .unwrap()
            .contains(&json!("native"))
    );
    let blue = named(&classes["classes"], "blue");
    assert_eq!(blue["members"], json!(["paint"]));
    assert_eq!(blue["requires"], json!({"colour": "blue", "shade": "dark"}));
    assert_eq!(
        named(&classes["classes"], "virtual-machine")["members"],
        json!(["qemu"])
    );
    assert_eq!(cpr.cpr_with_config(&config, ["engines", "show", "nobody"]).code, 66);
}

// GCA-CLASS-6, GCA-CS-3
#[test]
fn a_job_is_run_for_a_class_and_refused_by_the_name_of_a_limit() {
    let Some(cpr) = Cpr::new("a_job_is_run_for_a_class", As::User) else {
        return;
    };
    let ran = cpr.cpr(["run", "--class", "basic", "--", "sh", "-c", "exit 7"]);
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    let refused = cpr.cpr(["run", "--need", "tcp=teleported", "--", "touch", "made"]);
    assert_eq!(refused.code, 69);
    assert!(
        refused
            .stderr
            .contains("tcp=listening,inside,close,established, not teleported"),
        "{}",
        refused.stderr
    );
    assert!(!cpr.work.join("made").exists());
    let explained = cpr.cpr(["run", "--explain", "--class", "tcp", "--json", "--", "touch", "made"]);
    assert_eq!(explained.good().json()["engine"], "native");
    assert!(!cpr.work.join("made").exists());
    assert_eq!(cpr.cpr(["run", "--class", "nowhere", "--", "true"]).code, 66);
}

/// Of a program that saves itself, one that an engine can save, and one that neither is: the system says which is
/// which.
// GCA-DEF-3
#[test]
fn it_is_said_whether_a_program_can_be_checkpointed_and_by_what() {
    const HOLD_USERFAULTFD: &str = "import ctypes, time
assert ctypes.CDLL(None).syscall(323, 1) >= 0
print('ready', flush=True)
time.sleep(1000)";
    let Some(cpr) = Cpr::new("it_is_said_whether_a_program_can_be_checkpointed", As::User) else {
        return;
    };
    let own = ["--need", "programs=own-checkpoints", "--need", "trigger=external"];
    let explained = cpr.cpr([&["run", "--explain", "--json"][..], &own, &["--", "true"]].concat());
    assert_eq!(explained.good().json()["engine"], "application");
    cpr.run_detached("able", &[], &["sh", "-c", "echo ready; exec sleep 1000"]);
    cpr.run_detached("unable", &[], &["python3", "-c", HOLD_USERFAULTFD]);
    for job in ["able", "unable"] {
        support::wait_until(support::PATIENCE, "it runs", || cpr.logs(job).starts_with(b"ready"));
    }
    cpr.cpr(["check", "able"]).good();
    let refused = cpr.cpr(["check", "unable"]);
    assert_eq!(refused.code, 69, "{}{}", refused.text(), refused.stderr);
    let said = format!("{}{}", refused.text(), refused.stderr);
    assert!(said.contains("userfaultfd"), "{said}");
}

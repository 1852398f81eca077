//! What other languages install: the Python wheel, built from the sources and used in an environment of its own, and
//! the Java archive.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::library::{ROOT, library};
use support::{As, Cpr, PATIENCE, finish, skip};

const PYTHON: &str = "/usr/bin/python3";

/// Writes and restores a generation with nothing but what Python brings along.
const USE: &str = "\
import array, gridcpr, os, sys
assert 'numpy' not in sys.modules and gridcpr.__file__.startswith(sys.prefix), gridcpr.__file__
assert os.path.exists(os.path.join(os.path.dirname(gridcpr.__file__), 'py.typed'))
numbers, step = array.array('d', range(1000)), bytearray(8)
with gridcpr.Checkpoint('wheel', 'base') as app:
    app.protect('numbers', numbers)
    app.protect('matrix', memoryview(step).cast('B', (2, 4)))
    assert app.write() == 1
    numbers[:] = array.array('d', bytes(8000))
    step[3] = 7
    assert app.restore() == 1
assert numbers[999] == 999 and step[3] == 0
with gridcpr.critical():
    print(gridcpr.version())
";

// GFD93-LIB-7
#[test]
fn a_wheel_is_built_installed_and_used() {
    let test = "wheel";
    let Some(cpr) = Cpr::new(test, As::User) else { return };
    let library = library(&cpr);
    // The sources are left as they are.
    let copy = cpr.work.join("python").display().to_string();
    let mut command = Command::new("cp");
    command.args(["-r", &format!("{ROOT}/bindings/python"), &copy]);
    finish(&cpr.work, command, PATIENCE).good();
    cpr.give(Path::new(&copy));
    let tools = "import setuptools, pip, wheel, venv, ensurepip";
    if cpr.program(&[PYTHON, "-c", tools]).code != 0 {
        skip!(test, "{PYTHON} has no pip, setuptools, wheel or venv");
    }
    let wheels = cpr.work.join("wheels").display().to_string();
    let build = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "-w",
    ];
    let words: Vec<&str> = [&[PYTHON], &build[..], &[&wheels, &copy]].concat();
    cpr.program(&words).good();
    let wheel = fs::read_dir(&wheels)
        .expect("wheels")
        .next()
        .expect("a wheel")
        .expect("an entry")
        .path();
    assert!(
        wheel.to_string_lossy().ends_with("-py3-none-any.whl"),
        "{}",
        wheel.display()
    );
    let environment = cpr.work.join("venv").display().to_string();
    cpr.program(&[PYTHON, "-m", "venv", &environment]).good();
    let python = format!("{environment}/bin/python");
    let wheel = wheel.display().to_string();
    let install = [
        &python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--disable-pip-version-check",
        &wheel,
    ];
    cpr.program(&install).good();
    let library = format!("GRIDCPR_LIBRARY={}", library.display());
    let ended = cpr
        .program(&[
            "env",
            "-C",
            &cpr.work.display().to_string(),
            &library,
            &python,
            "-c",
            USE,
        ])
        .good();
    assert_eq!(ended.text().trim_end(), env!("CARGO_PKG_VERSION"));
}

/// The archive has every class, and nothing else; the native library needs nothing but libgridcpr.
// GFD93-LIB-6
#[test]
fn the_java_archive_has_every_class() {
    let test = "jar";
    let Some(cpr) = Cpr::new(test, As::User) else { return };
    if Command::new("javac").arg("-version").output().is_err() {
        skip!(test, "there is no JDK");
    }
    let mut command = Command::new(format!("{ROOT}/bindings/java/build"));
    command.arg(cpr.work.join("java")).arg(library(&cpr));
    finish(&cpr.work, command, PATIENCE).good();
    let archive = cpr.work.join("java/gridcpr.jar").display().to_string();
    let listed = cpr.program(&["jar", "--list", "--file", &archive]).good().text();
    let mut classes: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.strip_prefix("org/gridcpr/")?.strip_suffix(".class"))
        .filter(|class| !class.contains('$'))
        .collect();
    classes.sort_unstable();
    let mut sources: Vec<String> = fs::read_dir(format!("{ROOT}/bindings/java/org/gridcpr"))
        .expect("there are sources")
        .map(|entry| entry.expect("an entry").path())
        .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    sources.sort_unstable();
    assert_eq!(classes, sources);
    let native = cpr.work.join("java/libgridcpr_java.so").display().to_string();
    let symbols = cpr.program(&["nm", "-D", "--undefined-only", &native]).good().text();
    let wanted: Vec<&str> = symbols
        .lines()
        .filter_map(|line| line.trim().strip_prefix("U gridcpr_"))
        .collect();
    assert!(
        wanted.contains(&"app_protect_strided") && wanted.contains(&"register"),
        "{symbols}"
    );
}

//! One suite of cases in every language: C, C++, Fortran, Java, Python and the shell print the same, and read what the
//! others have written. The programs are in `tests/languages`; `suite.c` says what the cases are.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::library::{ROOT, library};
use support::{As, Cpr, PATIENCE, finish, note_skip, wait_until};

const PYTHON: &str = "/usr/bin/python3";

/// What all print for the cases that need no job.
const CASES: &str = "\
increments: 1/1/0 2/1/1 3/1/2
restored: 1 2 3
needed: -71
kept: 3/1/0 4/1/0
lives: 2/1/0
found: 2, the last 3
updated: done 60
read: 2
freed: 1/1/0 3/1/0
forgotten:
transferred: 3
half: 1/0/0
whole: 1/1/0
rank 0: 10
rank 1: 11
background: 1 0 8 of 8, 7
file: of its own
none: 0
another type: -78
no such generation: -66
open twice: -75
";

/// The program of a language, ready to be run.
struct Language {
    name: &'static str,
    words: Vec<String>,
    environment: BTreeMap<&'static str, String>,
}

impl Language {
    fn new(cpr: &Cpr, name: &'static str, words: &[&str]) -> Language {
        let environment = BTreeMap::from([
            ("GRIDCPR_LIBRARY", library(cpr).display().to_string()),
            ("LD_LIBRARY_PATH", cpr.work.display().to_string()),
            ("GRIDCPR_CPR", cpr.binary().display().to_string()),
            ("CPR", cpr.binary().display().to_string()),
            ("PYTHONPATH", format!("{ROOT}/bindings/python")),
            ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
        ]);
        Language {
            name,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            environment,
        }
    }

    /// What it prints with these arguments.
    #[track_caller]
    fn run(&self, cpr: &Cpr, arguments: &[&str]) -> String {
        let mut command = cpr.command(Path::new(&self.words[0]));
        command.args(&self.words[1..]).args(arguments).envs(&self.environment);
        finish(&cpr.work, command, PATIENCE).good().text()
    }
}

/// Compiles into the test's directory; none, after saying so, where there is no such compiler.
fn compiled(cpr: &Cpr, name: &'static str, compiler: &str, arguments: &[&str]) -> Option<Language> {
    if !has(compiler) {
        note_skip(name, &format!("there is no {compiler}"));
        return None;
    }
    let program = cpr.work.join(format!("suite-{name}"));
    let mut command = Command::new(compiler);
    command
        .args(arguments)
        .arg("-I")
        .arg(format!("{ROOT}/crates/gridcpr/include"));
    command.arg("-o").arg(&program).arg(library(cpr));
    command.arg(format!("-Wl,-rpath,{}", cpr.work.display()));
    command.current_dir(&cpr.work);
    finish(&cpr.work, command, PATIENCE).good();
    cpr.give(&program);
    Some(Language::new(cpr, name, &[&program.display().to_string()]))
}

fn has(program: &str) -> bool {
    Command::new(program).arg("-version").output().is_ok()
}

fn java(cpr: &Cpr) -> Option<Language> {
    if !has("javac") {
        note_skip("java", "there is no JDK");
        return None;
    }
    let mut command = Command::new(format!("{ROOT}/bindings/java/build"));
    command.arg(&cpr.work).arg(library(cpr));
    finish(&cpr.work, command, PATIENCE).good();
    let jar = cpr.work.join("gridcpr.jar").display().to_string();
    let classes = cpr.work.join("suite-java").display().to_string();
    let mut command = Command::new("javac");
    command.args(["-Xlint:all,-try", "-Werror", "-cp", &jar, "-d", &classes]);
    command.arg(format!("{ROOT}/tests/languages/Suite.java"));
    finish(&cpr.work, command, PATIENCE).good();
    let native = format!("-Dgridcpr.library={}/libgridcpr_java.so", cpr.work.display());
    let path = format!("{jar}:{classes}");
    let words = [
        "java",
        "-Xmx64m",
        "-XX:+UseSerialGC",
        "-XX:-UsePerfData",
        &native,
        "-cp",
        &path,
        "Suite",
    ];
    Some(Language::new(cpr, "java", &words))
}

fn python(cpr: &Cpr) -> Option<Language> {
    let numpy = Command::new(PYTHON).args(["-c", "import numpy"]).output();
    if !numpy.is_ok_and(|output| output.status.success()) {
        note_skip("python", &format!("there is no numpy for {PYTHON}"));
        return None;
    }
    let program = format!("{ROOT}/tests/languages/suite.py");
    Some(Language::new(cpr, "python", &[PYTHON, &program]))
}

/// All but the shell.
fn languages(cpr: &Cpr) -> Vec<Language> {
    let source = |name: &str| format!("{ROOT}/{name}");
    let c = source("tests/languages/suite.c");
    let cpp = source("tests/languages/suite.cpp");
    let module = source("bindings/fortran/gridcpr.f90");
    let fortran = source("tests/languages/suite.f90");
    let warnings = ["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"];
    let with = |more: &[&'static str], sources: &[&str]| -> Vec<String> {
        let all = warnings.iter().chain(more).chain(sources);
        all.map(|word| (*word).to_owned()).collect()
    };
    let build = |name, compiler, words: Vec<String>| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        compiled(cpr, name, compiler, &words)
    };
    let all = [
        build("c", "gcc", with(&[], &[&c])),
        build("cpp", "g++", with(&["-std=c++17"], &[&cpp])),
        build(
            "fortran",
            "gfortran",
            with(
                &["-std=f2008", "-Wno-compare-reals", "-Wno-uninitialized"],
                &[&module, &fortran],
            ),
        ),
        java(cpr),
        python(cpr),
    ];
    all.into_iter().flatten().collect()
}

fn shell(cpr: &Cpr, inputs: &Path) -> Language {
    let program = format!("{ROOT}/tests/languages/suite.sh");
    let mut language = Language::new(cpr, "shell", &["bash", &program]);
    language.environment.insert("INPUTS", inputs.display().to_string());
    language
}

/// What the shell compares with: the variables of a generation that the others have read already.
fn inputs(cpr: &Cpr, base: &str, generation: u64) -> PathBuf {
    let directory = cpr.work.join(format!("inputs-{generation}"));
    let (number, to) = (generation.to_string(), directory.display().to_string());
    cpr.cpr(["app", "restore", base, "suite", "--generation", &number, "-o", &to])
        .good();
    directory
}

// GFD93-LIB-2, GFD93-LIB-3, GFD93-LIB-4, GFD93-LIB-5, GFD93-LIB-6, GFD93-LIB-7, GFD93-LIB-8, GFD93-INT-CPRread
#[test]
fn every_language_reads_what_every_other_has_written() {
    let Some(cpr) = Cpr::new("languages read", As::User) else {
        return;
    };
    let all = languages(&cpr);
    let base = cpr.work.join("base").display().to_string();
    let mut generation = 0;
    for writer in &all {
        generation += 1;
        let seed = (generation * 3).to_string();
        assert_eq!(writer.run(&cpr, &["write", &base, &seed]), format!("{generation}\n"));
        for reader in &all {
            let said = reader.run(&cpr, &["read", &base, &seed]);
            assert_eq!(said, format!("{generation} {}\n", writer.name), "{} reads", reader.name);
        }
        let shell = shell(&cpr, &inputs(&cpr, &base, generation));
        assert_eq!(
            shell.run(&cpr, &["read", &base, &seed]),
            format!("{generation} {}\n", writer.name)
        );
    }
    let seed = (generation * 3).to_string();
    let same = shell(&cpr, &cpr.work.join(format!("inputs-{generation}")));
    let before = format!("{generation} {}\n", all.last().expect("there is C").name);
    generation += 1;
    assert_eq!(same.run(&cpr, &["write", &base, &seed]), format!("{generation}\n"));
    for reader in &all {
        assert_eq!(
            reader.run(&cpr, &["read", &base, &seed]),
            format!("{generation} shell\n")
        );
    }
    // One bit of the newest: all of them take the one before.
    let part = format!("{base}/suite/{generation:06}/part-00000");
    let mut bytes = fs::read(&part).expect("a file");
    bytes[8192 + 17] ^= 4;
    fs::write(&part, bytes).expect("a file");
    for reader in all.iter().chain([&same]) {
        assert_eq!(
            reader.run(&cpr, &["read", &base, &seed]),
            before,
            "{} falls back",
            reader.name
        );
    }
}

// GFD93-LIB-8, GFD93-INT-CPRupdate, GFD93-INT-CPRquery, GFD93-INT-CPRfree, GFD93-INT-CPRfreemeta, GFD93-API-1,
// GFD93-API-2
#[test]
fn the_cases_come_out_the_same_in_every_language() {
    let Some(cpr) = Cpr::new("languages cases", As::User) else {
        return;
    };
    for language in languages(&cpr) {
        let base = cpr.work.join(format!("base-{}", language.name)).display().to_string();
        assert_eq!(language.run(&cpr, &["cases", &base]), CASES, "{}", language.name);
    }
    // A command writes full generations, at once, and one process after the other.
    let not_there = [
        "increments",
        "restored",
        "needed",
        "background",
        "none",
        "another type",
        "open twice",
    ];
    let label = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let expected: String = CASES
        .lines()
        .filter(|line| !not_there.contains(&label(line).as_str()))
        .map(|line| format!("{line}\n"))
        .collect();
    let base = cpr.work.join("base-shell").display().to_string();
    assert_eq!(shell(&cpr, &cpr.work).run(&cpr, &["cases", &base]), expected);
}

// LBNL-3.6.7, LBNL-3.6.7.1, LBNL-3.6.7.2, LBNL-3.6.7.3, XGCP-CB-1, GFD93-INT-EHnotify
#[test]
fn every_language_takes_part_in_its_jobs_checkpoints() {
    let Some(cpr) = Cpr::new("languages job", As::User) else {
        return;
    };
    let all = languages(&cpr).into_iter().chain([shell(&cpr, &cpr.work)]);
    for language in all {
        let name = language.name;
        let again = format!("{name}-again");
        let mut words: Vec<String> = vec!["env".to_owned()];
        words.extend(language.environment.iter().map(|(key, value)| format!("{key}={value}")));
        words.extend(language.words.iter().cloned());
        words.push("job".to_owned());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        cpr.run_detached(name, &[], &words);
        let said = |job: &str| String::from_utf8_lossy(&cpr.logs(job)).into_owned();
        wait_until(PATIENCE, &format!("{name} goes on"), || {
            said(name).contains("continued")
        });
        let tell = |job: &str| {
            let told = cpr
                .cpr(["notify", job, "--reason", "the link is down", "--json"])
                .good()
                .json();
            assert_eq!(told["told"], 1, "{name}");
            assert_eq!(cpr.wait(job), 0, "{name}: {}", said(job));
        };
        tell(name);
        assert_eq!(
            said(name),
            "before\ncontinue\ncontinued 0 0\ntold: the link is down\nend\n",
            "{name}"
        );
        let image = cpr.state_dir.join(format!("jobs/{name}/images/000001.cpr"));
        let image = image.display().to_string();
        let shown = cpr.cpr(["inspect", &image, "--json"]).good().json();
        let identifier = shown["header"]["id"]
            .as_str()
            .expect("an image has an identifier")
            .to_owned();
        cpr.cpr(["restart", "-d", "--name", &again, &image]).good();
        wait_until(PATIENCE, &format!("{name} is restarted"), || {
            said(&again).contains("restarted")
        });
        tell(&again);
        assert_eq!(
            said(&again),
            format!("restart\nrestarted 1 1 {identifier} {again}\ntold: the link is down\nend\n"),
            "{name}"
        );
    }
}

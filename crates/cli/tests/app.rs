//! Checkpoints that programs write themselves: in C, C++, Fortran, Java, Python, and from the shell. The
//! programs are killed at any moment, and end with the result of an undisturbed run.

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::library::{ROOT, library};
use support::{As, Cpr, skip, wait_until};

const PYTHON: &str = "/usr/bin/python3";

/// A program that can be started again and again.
struct Solver {
    program: Vec<String>,
    directory: PathBuf,
    library: PathBuf,
}

impl Solver {
    fn c(cpr: &Cpr) -> Solver {
        let library = library(cpr);
        let program = cpr.work.join("heat");
        let status = Command::new("gcc")
            .args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-I"])
            .arg(Path::new(ROOT).join("crates/gridcpr/include"))
            .arg("-o")
            .arg(&program)
            .arg(Path::new(ROOT).join("examples/app/heat.c"))
            .arg(&library)
            .arg(format!("-Wl,-rpath,{}", cpr.work.display()))
            .status();
        assert!(status.is_ok_and(|status| status.success()), "heat.c does not compile");
        Solver {
            program: vec![program.display().to_string()],
            directory: cpr.work.clone(),
            library,
        }
    }

    /// By another compiler, with these arguments.
    fn compiled(cpr: &Cpr, compiler: &str, arguments: &[&str]) -> Option<Solver> {
        let library = library(cpr);
        let program = cpr.work.join("heat");
        let status = Command::new(compiler)
            .args(arguments)
            .arg("-I")
            .arg(Path::new(ROOT).join("crates/gridcpr/include"))
            .arg("-o")
            .arg(&program)
            .arg(&library)
            .arg(format!("-Wl,-rpath,{}", cpr.work.display()))
            .current_dir(&cpr.work)
            .status()
            .ok()?;
        assert!(status.success(), "{arguments:?} do not compile");
        Some(Solver {
            program: vec![program.display().to_string()],
            directory: cpr.work.clone(),
            library,
        })
    }

    fn python(cpr: &Cpr) -> Solver {
        Solver {
            program: vec![PYTHON.to_owned(), format!("{ROOT}/examples/app/heat.py")],
            directory: cpr.work.clone(),
            library: library(cpr),
        }
    }

    fn command(&self, base: &str, steps: &str) -> Command {
        let mut command = Command::new(&self.program[0]);
        command
            .args(&self.program[1..])
            .args([base, steps])
            .current_dir(&self.directory)
            .env("GRIDCPR_LIBRARY", &self.library)
            .env("LD_LIBRARY_PATH", &self.directory)
            .env("PYTHONPATH", format!("{ROOT}/bindings/python"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, base: &str, steps: &str) -> Output {
        self.command(base, steps).output().expect("it can be started")
    }

    /// Kills it whenever a new generation has appeared; then lets it run to its end.
    fn killed_again_and_again(&self, name: &str, steps: &str) {
        let undisturbed = self.run("undisturbed", steps);
        assert!(
            undisturbed.status.success(),
            "{}",
            String::from_utf8_lossy(&undisturbed.stderr)
        );
        let store = self.directory.join("killed").join(name);
        let newest = || {
            let entries = fs::read_dir(&store).into_iter().flatten().flatten();
            let complete = entries.filter(|entry| entry.path().join("complete").exists());
            complete
                .filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok())
                .max()
        };
        for _ in 0..3 {
            let before = newest();
            let mut command = self.command("killed", steps);
            let mut child = command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("it can be started");
            wait_until(support::PATIENCE, "a generation is written", || newest() > before);
            child.kill().expect("it can be killed");
            let status = child.wait().expect("it can be waited for");
            assert_eq!(status.signal(), Some(9), "it was killed in mid-work");
        }
        let again = self.run("killed", steps);
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(said.contains("going on at step"), "{said}");
        assert_eq!(again.stdout, undisturbed.stdout);
    }
}

// GFD93-INT-CPRwrite, GFD93-WF-4.2, GFD93-WF-4.7
#[test]
fn a_solver_in_c_ends_with_the_same_result() {
    let Some(cpr) = Cpr::new("a_solver_in_c_ends_with_the_same_result", As::Root) else {
        return;
    };
    Solver::c(&cpr).killed_again_and_again("heat", "6000");
}

#[test]
fn a_solver_in_python_ends_with_the_same_result() {
    let Some(cpr) = Cpr::new("a_solver_in_python_ends_with_the_same_result", As::Root) else {
        return;
    };
    Solver::python(&cpr).killed_again_and_again("heat-py", "4000");
}

// GFD93-LIB-3
#[test]
fn a_solver_in_cpp_ends_with_the_same_result() {
    let test = "a_solver_in_cpp_ends_with_the_same_result";
    let Some(cpr) = Cpr::new(test, As::Root) else {
        return;
    };
    let source = format!("{ROOT}/examples/app/heat.cpp");
    let options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", &source];
    match Solver::compiled(&cpr, "g++", &options) {
        Some(solver) => solver.killed_again_and_again("heat-cpp", "60000"),
        None => skip!(test, "there is no g++"),
    }
}

// GFD93-LIB-4
#[test]
fn a_solver_in_fortran_ends_with_the_same_result() {
    let test = "a_solver_in_fortran_ends_with_the_same_result";
    let Some(cpr) = Cpr::new(test, As::Root) else {
        return;
    };
    let sources = ["bindings/fortran/gridcpr.f90", "examples/app/heat.f90"].map(|path| format!("{ROOT}/{path}"));
    let options = ["-std=f2008", "-O1", "-Wall", "-Werror", &sources[0], &sources[1]];
    match Solver::compiled(&cpr, "gfortran", &options) {
        Some(solver) => solver.killed_again_and_again("heat-f", "6000"),
        None => skip!(test, "there is no gfortran"),
    }
}

// GFD93-LIB-6
#[test]
fn a_solver_in_java_ends_with_the_same_result() {
    let test = "a_solver_in_java_ends_with_the_same_result";
    let Some(cpr) = Cpr::new(test, As::Root) else {
        return;
    };
    if Command::new("javac").arg("-version").output().is_err() {
        skip!(test, "there is no JDK");
    }
    let library = library(&cpr);
    let status = Command::new(format!("{ROOT}/bindings/java/build"))
        .arg(&cpr.work)
        .arg(&library)
        .stdin(Stdio::null())
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "the Java classes do not compile"
    );
    let classes = cpr.work.join("classes");
    let compiled = Command::new("javac")
        .arg("-cp")
        .arg(&classes)
        .arg("-d")
        .arg(&classes)
        .arg(format!("{ROOT}/examples/app/Heat.java"))
        .status();
    assert!(
        compiled.is_ok_and(|status| status.success()),
        "Heat.java does not compile"
    );
    let native = format!("-Dgridcpr.library={}", cpr.work.join("libgridcpr_java.so").display());
    let words = ["java", native.as_str(), "-Xmx64m", "-cp", "classes", "Heat"];
    let solver = Solver {
        program: words.map(str::to_owned).to_vec(),
        directory: cpr.work.clone(),
        library,
    };
    solver.killed_again_and_again("heat-java", "60000");
}

// GFD93-LIB-7
#[test]
fn the_python_package_passes_its_tests() {
    let test = "the_python_package_passes_its_tests";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let ended = Command::new(PYTHON)
        .args(["-m", "unittest", "discover", "-s"])
        .arg(Path::new(ROOT).join("bindings/python/tests"))
        .current_dir(&cpr.work)
        .env("GRIDCPR_LIBRARY", library(&cpr))
        .env("PYTHONPATH", format!("{ROOT}/bindings/python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("Python can be started");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success() && said.contains("Ran 8 tests"), "{said}");
    if said.contains("skipped") {
        skip!(test, "there is no numpy for {PYTHON}: its arrays were not tried");
    }
}

/// A job is told where its own checkpoints belong, and which are to be full; they go when the job does.
// SAGA-JD-CPRSequence-7, SAGA-JD-CPRBaseLocation-5, SAGA-JD-CPRTimeToLive-4
#[test]
fn a_job_is_told_where_its_own_checkpoints_belong() {
    let test = "a_job_is_told_where_its_own_checkpoints_belong";
    let Some(cpr) = Cpr::new(test, As::Root) else {
        return;
    };
    let solver = Solver::c(&cpr);
    let print = "echo $SAGA_CPR_SEQUENCE; echo $SAGA_CPR_BASE_LOCATION; echo $SAGA_CPR_TIME_TO_LIVE; ./heat '' 300";
    let run = ["--every", "1h", "--sequence", "FIi", "--lifetime", "2h"];
    cpr.run_detached("told", &run, &["sh", "-c", print]);
    assert_eq!(cpr.wait("told"), 0);
    let said = String::from_utf8_lossy(&cpr.logs("told")).into_owned();
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("FIi"));
    let base = PathBuf::from(lines.next().expect("two lines"));
    assert!(base.ends_with("jobs/told/app"), "{}", base.display());
    assert_eq!(lines.next(), Some("7200"));
    assert!(base.join("heat/000003/complete").exists(), "{said}");
    cpr.cpr(["rm", "told"]).good();
    assert!(!base.exists());
    // What the user says holds, and without a sequence all are full.
    let own = cpr.work.join("own").display().to_string();
    let set = format!("SAGA_CPR_BASE_LOCATION={own}");
    let binary = cpr.binary().display().to_string();
    let script = "echo $SAGA_CPR_SEQUENCE $SAGA_CPR_BASE_LOCATION ${SAGA_CPR_TIME_TO_LIVE-never}";
    let ended = cpr
        .program(&["env", &set, &binary, "run", "--", "sh", "-c", script])
        .good();
    assert_eq!(ended.text(), format!("F {own} never\n"));
    drop(solver);
}

/// A program with checkpoints of its own is checkpointed as a whole as well, and goes on from either.
// LBNL-2.4.4
#[test]
fn a_solver_with_its_own_checkpoints_is_a_job_like_any_other() {
    let test = "a_solver_with_its_own_checkpoints_is_a_job_like_any_other";
    let Some(cpr) = Cpr::new(test, As::Root) else {
        return;
    };
    let solver = Solver::c(&cpr);
    let undisturbed = solver.run("undisturbed", "6000");
    let written = |number: &str| cpr.work.join("base/heat").join(number).join("complete").exists();
    cpr.run_detached("heat", &[], &[solver.program[0].as_str(), "base", "6000"]);
    wait_until(support::PATIENCE, "a generation is written", || written("000003"));
    cpr.checkpoint("heat", &["--stop"]);
    cpr.restart("heat");
    assert_eq!(cpr.wait("heat"), 0);
    assert_eq!(cpr.logs("heat"), undisturbed.stdout);
    // By its own means, from where its last run was killed.
    fs::remove_dir_all(cpr.work.join("base")).expect("a directory can be removed");
    cpr.run_detached("killed", &[], &[solver.program[0].as_str(), "base", "6000"]);
    wait_until(support::PATIENCE, "a generation is written", || written("000003"));
    cpr.cpr(["kill", "killed", "--signal", "KILL"]).good();
    cpr.wait("killed");
    let again = solver.run("base", "6000");
    assert!(String::from_utf8_lossy(&again.stderr).contains("going on at step"));
    assert_eq!(again.stdout, undisturbed.stdout);
}

/// What libgridcpr has written here is read on a machine of another kind, by a program that knows the format's
/// description alone, and the solver ends there with the same result.
// GFD93-SCOPE-1
#[test]
fn a_solver_goes_on_to_the_same_result_on_a_machine_of_another_kind() {
    let test = "a_solver_goes_on_to_the_same_result_on_a_machine_of_another_kind";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let (compiler, machine) = ("aarch64-linux-gnu-gcc", "qemu-aarch64");
    for program in [compiler, machine] {
        if Command::new(program).arg("--version").output().is_err() {
            skip!(test, "there is no {program}");
        }
    }
    let program = cpr.work.join("elsewhere");
    let status = Command::new(compiler)
        // Neither processor is to round less often than the other.
        .args([
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-ffp-contract=off",
            "-static",
            "-o",
        ])
        .arg(&program)
        .arg(format!("{ROOT}/tests/languages/heat_elsewhere.c"))
        .status();
    assert!(status.is_ok_and(|status| status.success()), "it does not compile");
    let solver = Solver::c(&cpr);
    let undisturbed = solver.run("undisturbed", "600");
    // It ends early here, and goes on there.
    assert!(solver.run("base", "350").status.success());
    let elsewhere = Command::new(machine)
        .arg(&program)
        .args(["base", "600"])
        .current_dir(&cpr.work)
        .output()
        .expect("it can be started");
    let said = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert!(
        elsewhere.status.success() && said.contains("going on at step 300"),
        "{said}"
    );
    assert!(!undisturbed.stdout.is_empty());
    assert_eq!(elsewhere.stdout, undisturbed.stdout);
}

/// What the C program has written is seen by the command, and by numpy.
// GFD93-INT-CPRquery, GFD93-INT-SMvalidate, GFD93-INT-CPRfree, GFD93-WF-2.1
#[test]
fn the_command_looks_after_generations() {
    let Some(cpr) = Cpr::new("the_command_looks_after_generations", As::Root) else {
        return;
    };
    let solver = Solver::c(&cpr);
    assert!(solver.run("base", "300").status.success());
    let listed = cpr.cpr(["app", "list", "base", "heat", "--json"]).good().json();
    let numbers: Vec<u64> = listed
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|g| g["generation"].as_u64())
        .collect();
    assert_eq!(numbers, [2, 3], "two are kept: {listed}");
    assert_eq!(listed[1]["state"], "complete");
    let shown = cpr.cpr(["app", "inspect", "base", "heat", "--json"]).good().json();
    let variable = &shown["parts"][0]["variables"][0];
    assert_eq!(
        (variable["name"].as_str(), variable["shape"][1].as_u64()),
        (Some("temperature"), Some(256))
    );
    cpr.cpr(["app", "verify", "base", "heat"]).good();

    cpr.cpr(["app", "export", "base", "heat", "temperature", "-o", "t.npy"])
        .good();
    cpr.cpr([
        "app",
        "export",
        "base",
        "heat",
        "step",
        "--raw",
        "--generation",
        "2",
        "-o",
        "step",
    ])
    .good();
    assert_eq!(fs::read(cpr.work.join("step")).expect("a file"), 200i64.to_ne_bytes());
    assert_eq!(
        cpr.cpr(["app", "export", "base", "heat", "step", "-o", "step"]).code,
        67,
        "it is there already"
    );
    assert_eq!(
        cpr.cpr(["app", "export", "base", "heat", "nothing", "-o", "n"]).code,
        66
    );
    cpr.cpr(["app", "export", "base", "heat", "--npz", "-o", "all.npz"])
        .good();
    let check = "import numpy
t = numpy.load('t.npy')
assert t.shape == (256, 256) and t[0, 5] == 100 and 0 < t[1, 5] < 100
z = numpy.load('all.npz')
assert z.files == ['temperature', 'step'] and z['step'] == 300 and (z['temperature'] == t).all()";
    let numpy = Command::new(PYTHON)
        .args(["-c", check])
        .current_dir(&cpr.work)
        .output()
        .expect("Python can be started");
    let said = String::from_utf8_lossy(&numpy.stderr).into_owned();
    assert!(numpy.status.success() || said.contains("No module named"), "{said}");

    cpr.cpr(["app", "transfer", "base", "heat", "elsewhere"]).good();
    cpr.cpr(["app", "verify", "elsewhere", "heat", "--generation", "3"])
        .good();
    assert_eq!(cpr.cpr(["app", "transfer", "base", "heat", "elsewhere"]).code, 67);
    // Altered, it is named; the program goes on from the one before.
    let part = cpr.work.join("base/heat/000003/part-00000");
    let mut bytes = fs::read(&part).expect("a file");
    bytes[10_000] ^= 1;
    fs::write(&part, bytes).expect("a file");
    assert_eq!(
        cpr.cpr(["app", "export", "base", "heat", "temperature", "-o", "half"])
            .code,
        65
    );
    assert!(!cpr.work.join("half").exists(), "half an array is left");
    let verified = cpr.cpr(["app", "verify", "base", "heat"]);
    assert_eq!(verified.code, 65, "{}", verified.stderr);
    assert!(
        verified.stderr.contains("generation 3") && verified.stderr.contains("altered"),
        "{}",
        verified.stderr
    );
    let again = solver.run("base", "300");
    assert!(String::from_utf8_lossy(&again.stderr).contains("going on at step 200"));
    cpr.cpr(["app", "free", "base", "heat", "--generation", "2"]).good();
    assert_eq!(cpr.cpr(["app", "free", "base", "heat", "--generation", "2"]).code, 66);
    assert_eq!(cpr.cpr(["app", "list", "base", "nobody"]).code, 66);
}

/// The library neither reads nor writes what is not its own, also where it is used wrongly.
#[test]
fn a_solver_in_c_is_clean_under_valgrind() {
    let test = "a_solver_in_c_is_clean_under_valgrind";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    let solver = Solver::c(&cpr);
    for _ in 0..2 {
        let mut command = Command::new("valgrind");
        command.args([
            "--quiet",
            "--error-exitcode=9",
            "--leak-check=full",
            "--errors-for-leak-kinds=definite",
        ]);
        command
            .args(&solver.program)
            .args(["base", "100"])
            .current_dir(&cpr.work)
            .stdin(Stdio::null());
        let Ok(ended) = command.output() else {
            skip!(test, "there is no valgrind");
        };
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
}

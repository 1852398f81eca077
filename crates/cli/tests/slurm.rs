//! Jobs that are saved when a signal comes, as Slurm sends one to whom another job is to follow.

#![allow(clippy::unwrap_used)]

#[path = "support/slurm.rs"]
mod cluster;
mod support;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use cluster::Cluster;
use support::{As, Cpr, poll, skip, wait_until};

const PATIENCE: Duration = Duration::from_secs(120);

/// Says a word of its own when it begins, and the same when it ends, which it does when there is a file `go`. How far
/// it is, is in the file `count`.
const WORD: &str = "
import os, sys, time
if len(sys.argv) > 1:
    import socket
    outside = socket.socket(socket.AF_UNIX); outside.connect(sys.argv[1])
word, n = os.urandom(8).hex(), 0
print('begin', word, flush=True)
while not os.path.exists('go'):
    n += 1
    file = os.open('count', os.O_WRONLY | os.O_CREAT, 0o644)
    os.pwrite(file, b'%20d' % n, 0); os.close(file)
    time.sleep(0.02)
print('end', word, flush=True)
";

fn count(cpr: &Cpr) -> u64 {
    count_in(&cpr.work)
}

fn count_in(directory: &Path) -> u64 {
    let text = fs::read_to_string(directory.join("count")).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

/// Who plays the user.
const NOBODY: u32 = 65534;
/// Jobs of `high` preempt those of `low`.
const PARTITIONS: &str = "PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60\n\
    PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF\n";

/// What the job has said is of one run.
#[track_caller]
fn is_of_one_run(said: &str) {
    let words: Vec<&str> = said.split_whitespace().collect();
    assert!(
        matches!(words[..], ["begin", one, "end", other] if one == other),
        "{said}"
    );
}

// LBNL-1.2.3.2
#[test]
fn a_job_that_slurm_preempts_goes_on_when_it_is_queued_again() {
    let test = "a_job_that_slurm_preempts_goes_on_when_it_is_queued_again";
    if let Some(reason) = cluster::missing() {
        skip!(test, "{reason}");
    }
    let Some(cpr) = Cpr::new(test, As::User) else { return };
    fs::write(cpr.work.join("word.py"), WORD).unwrap();
    let script = format!(
        "#!/bin/bash\n#SBATCH --requeue --open-mode=append --signal=B:USR1@50\n\
         exec {} exec --quiet --recover --save-on USR1 --name \"word-$SLURM_JOB_ID\" -- /usr/bin/python3 word.py\n",
        cpr.binary().display()
    );
    fs::write(cpr.work.join("word.sh"), script).unwrap();
    let more = format!("KillWait=10\nRequeueExit=79\nSlurmctldParameters=preempt_send_user_signal\n{PARTITIONS}");
    let cluster = Cluster::new(&cpr.work.parent().unwrap().join("slurm"), NOBODY, 1, 1, &more);
    let run = |words: &[&str]| {
        let state = format!("GRIDCPR_STATE_DIR={}", cpr.state_dir.display());
        cluster.good(&cpr.work, &[&["env", &state], words].concat())
    };
    let id = run(&["sbatch", "--parsable", "-p", "low", "-o", "said", "word.sh"]);
    wait_until(PATIENCE, "it counts", || count(&cpr) > 20);
    run(&["sbatch", "-p", "high", "-o", "high", "--wrap", "cat count >counted"]);
    let counted = cpr.work.join("counted");
    wait_until(PATIENCE, "the other job has run", || {
        fs::read_to_string(&counted).is_ok_and(|text| !text.is_empty())
    });
    let before: u64 = fs::read_to_string(&counted).unwrap().trim().parse().unwrap();
    wait_until(PATIENCE, "it goes on", || count(&cpr) > before + 20);
    fs::write(cpr.work.join("go"), "").unwrap();
    wait_until(PATIENCE, "it has ended", || {
        cluster.of_job(&id, "JobState") == "COMPLETED"
    });
    assert_eq!(cluster.of_job(&id, "Restarts"), "1");
    assert_eq!(cluster.of_job(&id, "ExitCode"), "0:0");
    let said = fs::read_to_string(cpr.work.join("said")).unwrap();
    is_of_one_run(&said);
}

/// A cluster with the plug-in, where that can be had.
struct Plugin {
    cluster: Cluster,
    /// Where it is installed.
    installed: PathBuf,
    configuration: PathBuf,
    cpr: Cpr,
}

impl Plugin {
    fn new(test: &str, nodes: usize) -> Option<Plugin> {
        let reason = cluster::missing().or_else(|| {
            // Else Slurm signals what a task has started, too, and a program ends before it can be saved.
            (!cluster::has_groups()).then(|| "no freezer hierarchy of control groups for Slurm".to_string())
        });
        if let Some(reason) = reason {
            support::note_skip(test, &reason);
            return None;
        }
        let cpr = Cpr::new(test, As::User)?;
        let base = cpr.work.parent().unwrap().to_path_buf();
        let installed = match cluster::build_plugin(&base) {
            Ok(installed) => installed,
            Err(reason) => {
                support::note_skip(test, &reason);
                return None;
            }
        };
        fs::create_dir(base.join("checkpoints")).unwrap();
        cpr.give(&base.join("checkpoints"));
        let partitions = PARTITIONS.replace("GraceTime=60", "");
        let more = format!("KillWait=30\nJobFileAppend=1\n{partitions}");
        Some(Plugin {
            cluster: Cluster::new(&base.join("slurm"), NOBODY, nodes, 1, &more),
            installed,
            configuration: base.join("slurm/plugstack.conf"),
            cpr,
        })
    }

    /// Adds it to the cluster, which runs.
    fn add(&self) {
        let line = format!(
            "required {0}/lib/slurm/spank_gridcpr.so cpr={1} dir={2}\n",
            self.installed.display(),
            self.cpr.binary().display(),
            self.cpr.work.parent().unwrap().join("checkpoints").display(),
        );
        fs::write(&self.configuration, line).unwrap();
    }

    /// And removes it.
    fn remove(&self) {
        fs::write(&self.configuration, "").unwrap();
    }

    /// A directory of the user's with the counting program and a script in it.
    fn directory(&self, name: &str, script: &str) -> PathBuf {
        let directory = self.cpr.work.join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("word.py"), WORD).unwrap();
        fs::write(directory.join("script.sh"), script).unwrap();
        self.cpr.give(&directory);
        directory
    }

    /// Submits the script of a directory; gives the number of the job.
    fn submit(&self, directory: &Path, options: &[&str]) -> String {
        let words = [&["sbatch", "--parsable", "-o", "said"], options, &["script.sh"]].concat();
        self.cluster.good(directory, &words)
    }

    /// Waits until a job of a directory goes on from where it was; gives its node.
    #[track_caller]
    fn goes_on(&self, id: &str, directory: &Path, restarts: u32) -> String {
        let restarts = restarts.to_string();
        let running =
            || self.cluster.of_job(id, "JobState") == "RUNNING" && self.cluster.of_job(id, "Restarts") == restarts;
        if poll(PATIENCE, || running().then_some(())).is_none() {
            panic!("{}", self.told(id, directory));
        }
        let before = count_in(directory);
        if poll(PATIENCE, || (count_in(directory) > before + 5).then_some(())).is_none() {
            panic!("{}", self.told(id, directory));
        }
        self.cluster.of_job(id, "NodeList")
    }

    fn told(&self, id: &str, directory: &Path) -> String {
        let shown = self.cluster.text(&["scontrol", "show", "job", id]);
        format!(
            "{shown}\n{}",
            fs::read_to_string(directory.join("said")).unwrap_or_default()
        )
    }

    /// Lets the job of a directory end, and gives the exit code that Slurm tells of it.
    #[track_caller]
    fn ends(&self, id: &str, directory: &Path) -> String {
        fs::write(directory.join("go"), "").unwrap();
        let over = || matches!(self.cluster.of_job(id, "JobState").as_str(), "COMPLETED" | "FAILED");
        if poll(PATIENCE, || over().then_some(())).is_none() {
            panic!("{}", self.told(id, directory));
        }
        self.cluster.of_job(id, "ExitCode")
    }
}

/// What the job of a directory has said, but for what Slurm's own programs and the script say.
fn said_in(directory: &Path) -> String {
    let said = fs::read_to_string(directory.join("said")).unwrap();
    let own = |line: &&str| line.starts_with("begin ") || line.starts_with("end ");
    said.lines().filter(own).collect::<Vec<_>>().join("\n")
}

// LBNL-3.4.1, GCA-WRAP-2
#[test]
fn with_the_plugin_jobs_that_are_preempted_and_that_leave_a_drained_node_go_on_on_others() {
    let test = "with_the_plugin_jobs_that_are_preempted_and_that_leave_a_drained_node_go_on_on_others";
    let Some(plugin) = Plugin::new(test, 3) else { return };
    plugin.add();
    let cluster = &plugin.cluster;
    let directory = plugin.directory("job", "#!/bin/bash\nsrun /usr/bin/python3 word.py\necho after\n");
    let id = plugin.submit(&directory, &["-p", "low", "--checkpoint"]);
    wait_until(PATIENCE, "it counts", || count_in(&directory) > 5);
    let first = cluster.of_job(&id, "NodeList");

    // A job that needs its node takes it, and it goes on on another one. Nothing was saved so far: it is saved now.
    let high = [
        "sbatch",
        "--parsable",
        "-p",
        "high",
        "-o",
        "high",
        "-w",
        &first,
        "--wrap",
        "sleep 1000",
    ];
    let high = cluster.good(&directory, &high);
    let second = plugin.goes_on(&id, &directory, 1);
    assert_ne!(second, first);
    assert_eq!(cluster.of_job(&high, "JobState"), "RUNNING");

    // An operator wants a node free: what is queued again goes on on the third one.
    cluster.root(
        1,
        &format!("scontrol update NodeName={second} State=DRAIN Reason=test; scontrol requeue {id}"),
    );
    let third = plugin.goes_on(&id, &directory, 2);
    assert!(third != first && third != second, "{first} {second} {third}");
    assert_eq!(plugin.ends(&id, &directory), "0:0", "{}", plugin.told(&id, &directory));
    is_of_one_run(&said_in(&directory));
    // The script went on only when the step had really ended.
    let said = fs::read_to_string(directory.join("said")).unwrap();
    assert_eq!(said.matches("after").count(), 1, "{said}");
    // Of a job that has ended well nothing is kept.
    let base = plugin
        .cpr
        .work
        .parent()
        .unwrap()
        .join(format!("checkpoints/{NOBODY}/jobs"));
    assert_eq!(fs::read_dir(base).unwrap().count(), 0);
}

// LBNL-2.1.5, GCA-ENV-1
#[test]
fn the_plugin_is_added_to_a_cluster_and_removed_and_jobs_are_saved_by_their_numbers_in_slurm() {
    let test = "the_plugin_is_added_to_a_cluster_and_removed_and_jobs_are_saved_by_their_numbers_in_slurm";
    let Some(plugin) = Plugin::new(test, 2) else { return };
    let cluster = &plugin.cluster;
    let script = "#!/bin/bash\n# without srun\n/usr/bin/python3 word.py\nexit 7\n";
    // Before, with it and after, with nothing but an option more.
    let before = plugin.directory("before", script);
    let id = plugin.submit(&before, &[]);
    assert_eq!(plugin.ends(&id, &before), "7:0");
    plugin.add();

    // A job that does not want it is not touched.
    let plain = "tr '\\0' '\\n' </proc/self/environ | grep -c GRIDCPR; cat /proc/$PPID/comm";
    let shown = cluster.good(&plugin.cpr.work, &["srun", "sh", "-c", plain]);
    assert_eq!(shown, "0\nslurmstepd");
    // Of one that does, exit codes and signals are the same.
    for (program, code) in [("exit 5", 5), ("kill -KILL $$", 137)] {
        let output = cluster.run(&plugin.cpr.work, &["srun", "--checkpoint", "sh", "-c", program]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
    let bad = cluster.run(&plugin.cpr.work, &["srun", "--checkpoint-interval", "soon", "true"]);
    assert!(!bad.status.success(), "{bad:?}");

    // What a node can is asked for by way of Slurm, and published where Slurm chooses nodes by it.
    let cpr = plugin.cpr.binary().to_str().unwrap();
    cluster.root(
        2,
        &format!(
            "GRIDCPR_CPR={cpr} SLURMD_NODENAME=n2 {}/libexec/gridcpr/gridcpr-features",
            plugin.installed.display()
        ),
    );
    let native = ["srun", "-C", "gridcpr-native", "sh", "-c", "echo $SLURMD_NODENAME"];
    assert_eq!(cluster.good(&plugin.cpr.work, &native), "n2");
    let engines = cluster.good(&plugin.cpr.work, &["srun", "-w", "n2", cpr, "engines", "--json"]);
    assert!(engines.contains("\"native\""), "{engines}");

    // A script as a whole is saved again and again, on demand, and by the number that it has in Slurm.
    let directory = plugin.directory("job", script);
    let id = plugin.submit(&directory, &["--checkpoint-interval", "1s"]);
    let images = plugin.cpr.work.parent().unwrap();
    let images = images.join(format!("checkpoints/{NOBODY}/jobs/slurm-{id}/images"));
    wait_until(PATIENCE, "it is saved", || {
        fs::read_dir(&images).is_ok_and(|all| all.count() >= 2)
    });
    let checkpoint = plugin.installed.join("bin/gridcpr-checkpoint");
    let checkpoint = [&format!("GRIDCPR_CPR={cpr}"), checkpoint.to_str().unwrap(), &id];
    let by_number = |more: &[&str]| cluster.good(&directory, &[&["env"], &checkpoint[..], more].concat());
    by_number(&[]);
    assert_eq!(cluster.of_job(&id, "Restarts"), "0");
    // With an end it is queued again.
    by_number(&["--stop"]);
    plugin.goes_on(&id, &directory, 1);
    // One that is killed goes on from what was saved last when somebody has it queued again.
    let node: usize = cluster.of_job(&id, "NodeList")[1..].parse().unwrap();
    cluster.root(
        node,
        &format!("kill -KILL $(scontrol listpids {id} | awk '$4 == \"0\" {{ print $1 }}')"),
    );
    wait_until(PATIENCE, "it is gone", || cluster.of_job(&id, "JobState") == "FAILED");
    cluster.good(&directory, &["scontrol", "requeue", &id]);
    plugin.goes_on(&id, &directory, 2);
    assert_eq!(plugin.ends(&id, &directory), "7:0", "{}", plugin.told(&id, &directory));
    is_of_one_run(&said_in(&directory));

    plugin.remove();
    let after = plugin.directory("after", script);
    let id = plugin.submit(&after, &[]);
    assert_eq!(plugin.ends(&id, &after), "7:0");
    let refused = cluster.run(&plugin.cpr.work, &["srun", "--checkpoint", "true"]);
    assert!(!refused.status.success(), "{refused:?}");
}

#[test]
fn a_signal_saves_and_ends_a_job_that_can_be_saved() {
    let test = "a_signal_saves_and_ends_a_job_that_can_be_saved";
    let Some(cpr) = Cpr::new(test, As::User) else { return };
    fs::write(cpr.work.join("word.py"), WORD).unwrap();
    let listener = UnixListener::bind(cpr.work.join("outside")).unwrap();
    cpr.give(&cpr.work);
    // Connected with somebody outside it cannot be saved: it is told so and runs on.
    let file = |name: String| {
        let path = cpr.work.join(name);
        let file = fs::File::create(&path).unwrap();
        cpr.give(&path);
        file
    };
    let start = |name: &str, more: &[&str]| {
        let mut command = cpr.command(cpr.binary());
        command
            .args([
                "run",
                "--save-on",
                "USR1",
                "--name",
                name,
                "--",
                "/usr/bin/python3",
                "word.py",
            ])
            .args(more)
            .stdout(file(format!("{name}.said")))
            .stderr(file(format!("{name}.told")));
        command.spawn().unwrap()
    };
    let told = |name: &str| fs::read_to_string(cpr.work.join(format!("{name}.told"))).unwrap();
    let signal = |child: &Child| {
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    };
    let mut bound = start("bound", &["outside"]);
    let _outside = listener.accept().unwrap();
    wait_until(PATIENCE, "it counts", || count(&cpr) > 5);
    signal(&bound);
    wait_until(PATIENCE, "it is told", || told("bound").contains("outside"));
    let before = count(&cpr);
    wait_until(PATIENCE, "it runs on", || count(&cpr) > before + 5);
    cpr.cpr(["kill", "--signal", "KILL", "bound"]).good();
    bound.wait().unwrap();
    fs::remove_file(cpr.work.join("count")).unwrap();

    let mut free = start("free", &[]);
    wait_until(PATIENCE, "it counts", || count(&cpr) > 5);
    signal(&free);
    assert_eq!(free.wait().unwrap().code(), Some(79), "{}", told("free"));
    assert!(!cpr.is_running("free"));
    fs::write(cpr.work.join("go"), "").unwrap();
    cpr.restart("free");
    assert_eq!(cpr.wait("free"), 0);
    is_of_one_run(&fs::read_to_string(cpr.work.join("free.said")).unwrap());

    // Of signals that nobody can wait for it says so at once.
    let never = cpr.cpr(["run", "--save-on", "KILL", "--", "/bin/true"]);
    assert_eq!(never.code, 64, "{never:?}");
}

//! Jobs that are saved when a signal comes, as Slurm sends one to whom another job is to follow.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::{As, Cpr, Ended, finish, poll, skip, wait_until};

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
    let text = fs::read_to_string(cpr.work.join("count")).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

/// What the job has said is of one run.
#[track_caller]
fn is_of_one_run(said: &str) {
    let words: Vec<&str> = said.split_whitespace().collect();
    assert!(
        matches!(words[..], ["begin", one, "end", other] if one == other),
        "{said}"
    );
}

/// A cluster of one machine, in namespaces of its own. Two partitions share its only processor; jobs of `high` preempt
/// those of `low`.
struct Cluster {
    unshare: Child,
    init: String,
    directory: PathBuf,
}

impl Cluster {
    fn new(cpr: &Cpr) -> Cluster {
        let directory = cpr.work.parent().unwrap().join("slurm");
        for part in ["", "state", "spool"] {
            fs::create_dir(directory.join(part)).unwrap();
        }
        let at = directory.to_str().unwrap();
        let configuration = format!(
            "ClusterName=one\nSlurmctldHost=one(10.96.0.1)\nSlurmUser=root\nAuthType=auth/munge\n\
             AuthInfo=socket={at}/munge.sock,cred_expire=5\nStateSaveLocation={at}/state\nSlurmdSpoolDir={at}/spool\n\
             SlurmctldPidFile={at}/slurmctld.pid\nSlurmdPidFile={at}/slurmd.pid\nSlurmctldLogFile={at}/slurmctld.log\n\
             SlurmdLogFile={at}/slurmd.log\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nMailProg=/bin/true\nJobRequeue=1\nKillWait=10\n\
             PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\nRequeueExit=79\n\
             SlurmctldParameters=preempt_send_user_signal\nSchedulerParameters=sched_interval=2,bf_interval=2\n\
             NodeName=one NodeAddr=10.96.0.1 CPUs=1 State=UNKNOWN\n\
             PartitionName=low Nodes=one Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60\n\
             PartitionName=high Nodes=one PriorityTier=10 PreemptMode=OFF\n"
        );
        fs::write(directory.join("slurm.conf"), configuration).unwrap();
        let begin = format!(
            "set -e; hostname one; ip link set lo up; ip link add v0 type veth peer name v1\n\
             ip addr add 10.96.0.1/24 dev v0; ip link set v0 up; ip link set v1 up; cd {at}\n\
             head -c 1024 /dev/urandom >munge.key; chmod 400 munge.key\n\
             munged --force --key-file={at}/munge.key --socket={at}/munge.sock --pid-file={at}/munge.pid \
             --log-file={at}/munge.log --seed-file={at}/munge.seed\n\
             slurmctld; slurmd -N one; while :; do sleep 1; done"
        );
        let log = fs::File::create(directory.join("log")).unwrap();
        let unshare = Command::new("unshare")
            .args([
                "--net",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child=KILL",
                "--mount",
                "--mount-proc",
            ])
            .args(["sh", "-c", &begin])
            .env("SLURM_CONF", directory.join("slurm.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let path = format!("/proc/{0}/task/{0}/children", unshare.id());
        let init = poll(PATIENCE, || {
            let text = fs::read_to_string(&path).ok()?;
            (!text.trim().is_empty()).then(|| text.trim().to_string())
        });
        let cluster = Cluster {
            unshare,
            init: init.expect("the machine is there"),
            directory,
        };
        wait_until(PATIENCE, "the cluster is up", || {
            cluster.run(cpr, &["sinfo", "-h", "-o", "%T"]).text().contains("idle")
        });
        cluster
    }

    /// Runs a command of the user in it.
    fn run(&self, cpr: &Cpr, words: &[&str]) -> Ended {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.init, "--net", "--uts", "--pid", "--mount"])
            .arg(format!("--wd={}", cpr.work.display()))
            .args([
                "--",
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--",
            ])
            .args(words)
            .env("SLURM_CONF", self.directory.join("slurm.conf"))
            .env("GRIDCPR_STATE_DIR", &cpr.state_dir);
        finish(&cpr.work, command, PATIENCE)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

// LBNL-1.2.3.2
#[test]
fn a_job_that_slurm_preempts_goes_on_when_it_is_queued_again() {
    let test = "a_job_that_slurm_preempts_goes_on_when_it_is_queued_again";
    if !support::am_root() {
        skip!(test, "a cluster in namespaces: only root can make it");
    }
    let Some(cpr) = Cpr::new(test, As::User) else { return };
    for program in ["munged", "slurmctld", "slurmd", "sbatch"] {
        if cpr.program(&["sh", "-c", r#"command -v "$1""#, "sh", program]).code != 0 {
            skip!(test, "{program} not found");
        }
    }
    fs::write(cpr.work.join("word.py"), WORD).unwrap();
    let script = format!(
        "#!/bin/bash\n#SBATCH --requeue --open-mode=append --signal=B:USR1@50\n\
         exec {} exec --quiet --recover --save-on USR1 --name \"word-$SLURM_JOB_ID\" -- /usr/bin/python3 word.py\n",
        cpr.binary().display()
    );
    fs::write(cpr.work.join("word.sh"), script).unwrap();
    let cluster = Cluster::new(&cpr);
    let submit = ["sbatch", "--parsable", "-p", "low", "-o", "said", "word.sh"];
    let id = cluster.run(&cpr, &submit).good().text().trim().to_string();
    wait_until(PATIENCE, "it counts", || count(&cpr) > 20);
    let high = ["sbatch", "-p", "high", "-o", "high", "--wrap", "cat count >counted"];
    cluster.run(&cpr, &high).good();
    let counted = cpr.work.join("counted");
    wait_until(PATIENCE, "the other job has run", || {
        fs::read_to_string(&counted).is_ok_and(|text| !text.is_empty())
    });
    let before: u64 = fs::read_to_string(&counted).unwrap().trim().parse().unwrap();
    wait_until(PATIENCE, "it goes on", || count(&cpr) > before + 20);
    fs::write(cpr.work.join("go"), "").unwrap();
    let state = || {
        let shown = cluster.run(&cpr, &["scontrol", "show", "job", &id]).text();
        let word = |name: &str| {
            let found = shown.split_whitespace().find_map(|word| word.strip_prefix(name));
            found.unwrap_or_default().to_string()
        };
        (word("JobState="), word("Restarts="), word("ExitCode="))
    };
    wait_until(PATIENCE, "it has ended", || state().0 == "COMPLETED");
    assert_eq!(state(), ("COMPLETED".into(), "1".into(), "0:0".into()));
    let said = fs::read_to_string(cpr.work.join("said")).unwrap();
    is_of_one_run(&said);
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

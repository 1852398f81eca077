//! The units of a job of a grid as the hosts of an MPI program.
//!
//! Unit 0 runs `mpiexec`, told where the others are and that a command for another host is to be given to us. The others
//! wait for theirs, in a directory that all units see, and become it. No port is opened for it: whoever may write there
//! may run commands as the user anyway.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{ErrorKind as Io, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cpr_types::{Context as _, Error, ErrorKind, Result};

/// What our directories begin with.
const PREFIX: &str = ".cpr-mpi-";
/// How long unit 0 waits for the others: they are started together, but on nodes of their own.
const ALL_HERE: Duration = Duration::from_secs(600);
/// Between two looks into the directory, which may be on another machine: nobody tells us what happens there.
const LOOK: Duration = Duration::from_millis(50);

/// The units of the job that we are one of.
pub struct Units {
    /// Which we are.
    number: usize,
    /// What all units of this start of the job have in common: `JOB.START`.
    id: String,
    /// Where each runs.
    hosts: Vec<String>,
}

impl Units {
    /// As the grid tells its units.
    pub fn from_environment() -> Result<Units> {
        let what = || "find the other units of this job".to_string();
        let value = |name: &str| {
            let value = std::env::var(name).map_err(|_| {
                Error::new(ErrorKind::Usage, format!("{name} is not set"))
                    .with_hint("this is for units of a job: cpr submit --units N -- cpr mpi mpiexec PROGRAM")
            });
            value.context(what)
        };
        let number = value("GRIDCPR_UNIT")?;
        let hosts: Vec<String> = value("GRIDCPR_UNIT_HOSTS")?.split(',').map(str::to_owned).collect();
        let id = value("GRIDCPR_UNITS_ID")?;
        let number = number.parse().ok().filter(|number| *number < hosts.len());
        let is_name = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let (Some(number), true) = (number, is_name) else {
            return Err(Error::new(
                ErrorKind::Usage,
                "GRIDCPR_UNIT or GRIDCPR_UNITS_ID is none of a grid's",
            ))
            .context(what);
        };
        if let Some(unit) = hosts.iter().position(String::is_empty) {
            let error = Error::new(
                ErrorKind::Unsupported,
                format!("nobody knows where unit {unit} is reached"),
            );
            return Err(error.with_hint("the configuration of its node has to say `advertise` or `listen`"))
                .context(what);
        }
        Ok(Units { number, id, hosts })
    }

    /// Each host once, with the number of ranks that are for it.
    fn slots(&self, of_a_unit: u32) -> Vec<(&str, u32)> {
        let mut slots: Vec<(&str, u32)> = Vec::new();
        for host in &self.hosts {
            match slots.iter_mut().find(|(known, _)| known == host) {
                Some((_, slots)) => *slots += of_a_unit,
                None => slots.push((host, of_a_unit)),
            }
        }
        slots
    }
}

/// Where the units of one start meet.
struct Meeting(PathBuf);

impl Meeting {
    /// The same for all units of a start.
    fn of(units: &Units, directory: &Path) -> Meeting {
        Meeting(directory.join(format!("{PREFIX}{}", units.id)))
    }

    /// Makes it where it is not there, and says that we are.
    fn enter(&self, number: usize) -> Result<()> {
        let what = || format!("meet the other units in {}", self.0.display());
        match fs::DirBuilder::new().mode(0o700).create(&self.0) {
            Err(error) if error.kind() != Io::AlreadyExists => return Err(error).context(what),
            _ => {}
        }
        let found = fs::symlink_metadata(&self.0).context(what)?;
        // In a user namespace the owner can look like us and be somebody else, in whose directory we cannot write then.
        let is_ours = found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0;
        if !found.is_dir() || !is_ours {
            return Err(Error::new(ErrorKind::Denied, "it is not a directory of ours alone")).context(what);
        }
        self.put(&format!("here-{number}"), b"").context(what)
    }

    /// Writes a file, whole or not at all.
    fn put(&self, name: &str, content: &[u8]) -> std::io::Result<()> {
        let new = self.0.join(format!("{name}.new"));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(content)?;
        fs::rename(new, self.0.join(name))
    }

    /// Waits until all units are there.
    fn wait_for_all(&self, units: usize) -> Result<()> {
        let until = Instant::now() + ALL_HERE;
        for number in 0..units {
            while !self.0.join(format!("here-{number}")).exists() {
                if Instant::now() > until {
                    let why = format!("unit {number} has not come to {}", self.0.display());
                    let error = Error::new(ErrorKind::TimedOut, why);
                    return Err(error.with_hint("every node has to see the same directory there: see --directory"))
                        .context(|| "wait for the other units");
                }
                std::thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    /// Waits until there is a command for a unit; nothing where unit 0 has come to its end without one. The job's end
    /// is the only limit.
    fn wait_for_command(&self, number: usize) -> Result<Option<OsString>> {
        let what = || format!("wait in {} for a command", self.0.display());
        let own = self.0.join(format!("command-{number}"));
        loop {
            match fs::read(&own) {
                Ok(command) => return Ok(Some(OsString::from_vec(command))),
                Err(error) if error.kind() != Io::NotFound => return Err(error).context(what),
                Err(_) if !self.0.try_exists().context(what)? => return Ok(None),
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    /// Forgets earlier starts of the same job, which have come to no end.
    fn forget_earlier(&self, units: &Units, directory: &Path) {
        let Some((job, _)) = units.id.split_once('.') else {
            return;
        };
        let earlier = format!("{PREFIX}{job}.");
        // Where one stays it is in nobody's way.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let is_earlier = entry.file_name().as_bytes().starts_with(earlier.as_bytes()) && entry.path() != self.0;
            if is_earlier && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Does what this unit has to do; gives its exit code.
///
/// # Errors
/// [`ErrorKind::Usage`] outside of a job with units, [`ErrorKind::TimedOut`] where not all come to the directory.
pub fn take_part(units: &Units, directory: &Path, ranks: u32, command: &[OsString]) -> Result<u8> {
    let meeting = Meeting::of(units, directory);
    meeting.enter(units.number)?;
    if units.number > 0 {
        return match meeting.wait_for_command(units.number)? {
            Some(command) => become_command(&command),
            None => Ok(0),
        };
    }
    meeting.forget_earlier(units, directory);
    meeting.wait_for_all(units.hosts.len())?;
    let ended = lead(units, &meeting, ranks, command);
    // Those that were given nothing to do go when it is gone.
    let removed = fs::remove_dir_all(&meeting.0).context(|| format!("remove {}", meeting.0.display()));
    let code = ended?;
    removed?;
    Ok(code)
}

/// Runs the command of unit 0, in an environment from which `mpiexec` of MPICH and of Open MPI know where to start what.
fn lead(units: &Units, meeting: &Meeting, ranks: u32, command: &[OsString]) -> Result<u8> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| Error::new(ErrorKind::Usage, "there is no command"))?;
    let what = || format!("run {}", Path::new(program).display());
    let lines = |slots: &str| {
        let lines = units.slots(ranks).into_iter();
        let lines = lines.map(|(host, ranks)| format!("{host}{slots}{ranks}\n"));
        lines.collect::<String>()
    };
    let prepare = || format!("prepare {} for mpiexec", meeting.0.display());
    meeting.put("hosts.mpich", lines(":").as_bytes()).context(prepare)?;
    meeting
        .put("hosts.openmpi", lines(" slots=").as_bytes())
        .context(prepare)?;
    let own = std::env::current_exe().context(prepare)?;
    let directory = fs::canonicalize(&meeting.0).context(prepare)?;
    let script = [
        b"#!/bin/sh\nexec ".as_slice(),
        &quoted(own.as_os_str()),
        b" mpi --directory ",
        &quoted(directory.as_os_str()),
        b" --launch \"$@\"\n",
    ];
    meeting.put("launch", &script.concat()).context(prepare)?;
    let launch = directory.join("launch");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&launch, mode).context(prepare)?;
    let mut command = Command::new(program);
    // Open MPI complains to the program's standard error where the user's shell is none.
    let shell = std::env::var_os("SHELL").unwrap_or_default();
    if !shell.as_bytes().ends_with(b"sh") {
        command.env("SHELL", "/bin/sh");
    }
    let status = command
        .args(arguments)
        .env("HYDRA_LAUNCHER", "rsh")
        .env("HYDRA_LAUNCHER_EXEC", &launch)
        .env("HYDRA_HOST_FILE", directory.join("hosts.mpich"))
        .env("OMPI_MCA_plm", "rsh")
        .env("OMPI_MCA_plm_rsh_agent", &launch)
        .env("OMPI_MCA_plm_rsh_no_tree_spawn", "1")
        // What is started for it stays, and is what its unit is.
        .env("OMPI_MCA_orte_leave_session_attached", "1")
        .env("OMPI_MCA_orte_default_hostfile", directory.join("hosts.openmpi"))
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .status()
        .context(what)?;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok((code & 0xff) as u8)
}

/// Gives the unit on a host a command, as rsh(1) would: called by `mpiexec` of unit 0. On our own host we become it.
///
/// # Errors
/// [`ErrorKind::NotFound`] where no unit runs on that host.
pub fn launch(units: &Units, directory: &Path, host_and_command: &[OsString]) -> Result<u8> {
    let (host, words) = match host_and_command.split_first() {
        Some((host, words)) if !words.is_empty() => (host, words),
        _ => return Err(Error::new(ErrorKind::Usage, "a host and a command are needed")),
    };
    let what = || format!("start a command on {}", Path::new(host).display());
    let Some(number) = units.hosts.iter().position(|known| OsStr::new(known) == host) else {
        let known = units.hosts.join(", ");
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("no unit of this job runs there; they are on {known}"),
        ))
        .context(what);
    };
    let command = words.join(OsStr::new(" "));
    if units.hosts.get(units.number) == units.hosts.get(number) {
        return become_command(&command);
    }
    let meeting = Meeting(directory.to_path_buf());
    meeting
        .put(&format!("command-{number}"), command.as_bytes())
        .context(what)?;
    Ok(0)
}

/// Only comes back with what kept it from that.
fn become_command(command: &OsStr) -> Result<u8> {
    let error = Command::new("/bin/sh").arg("-c").arg(command).exec();
    Err(error).context(|| "run the command that mpiexec has given to this unit")
}

/// As one word of a shell.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

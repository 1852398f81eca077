//! `cpr logs`

use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use cpr_types::{Context, Error, ErrorKind, Result};

use crate::args::Logs;
use crate::output::write_stdout;
use crate::target;

/// How often a followed log is looked at.
const PERIOD: Duration = Duration::from_millis(100);

pub fn logs(args: &Logs) -> Result<u8> {
    let job = target::job(&args.job)?;
    let path = job.log_path();
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let message = format!("job {} has no log", job.name());
            return Err(Error::new(ErrorKind::NotFound, message)
                .with_hint("only jobs in the background have one; others print to where they were started"));
        }
        result => result.context(|| format!("open {}", path.display()))?,
    };
    loop {
        // Asked first: what a job prints before it ends is in the log by then.
        let last = !args.follow || !job.is_alive()?;
        copy(&mut file).context(|| format!("show {}", path.display()))?;
        if last {
            return Ok(0);
        }
        std::thread::sleep(PERIOD);
    }
}

fn copy(file: &mut File) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match file.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result.context(|| "read")?,
        };
        if count == 0 {
            return Ok(());
        }
        write_stdout(&buffer[..count])?;
    }
}

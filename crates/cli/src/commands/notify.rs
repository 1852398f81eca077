//! `cpr notify`

use cpr_types::Result;
use serde_json::json;

use crate::args::Notify;
use crate::commands::suspend::numbers;
use crate::output::Output;
use crate::target::{Live, live};

pub fn notify(output: Output, args: &Notify) -> Result<u8> {
    let (names, told) = match live(args.stand.target.as_deref(), args.stand.session)? {
        Live::Job(job) => (json!({"job": job.name()}), job.notify(&args.reason, args.timeout)?),
        Live::Bare(bare) => (numbers(bare), cpr_node::notify_bare(bare, &args.reason, args.timeout)?),
    };
    output.done(
        || json!({"job": names["job"], "pid": names["pid"], "session": names["session"], "told": told}),
        || match told {
            0 => "no program there has a callback\n".to_owned(),
            1 => "1 process was told\n".to_owned(),
            more => format!("{more} processes were told\n"),
        },
    )?;
    Ok(0)
}

//! `cpr events`

use cpr_types::{Error, ErrorKind, Result};
use gridcpr::grid::model::Event;

use super::{all, client, query};
use crate::args::grid::Events;
use crate::output::{Output, clean, from_ms, timestamp, to_json};

/// One line of text or JSON for an event.
fn show(output: Output, event: &Event) -> Result<()> {
    let value = to_json(event)?;
    let time = timestamp(from_ms(event.at_ms.unsigned_abs()));
    output.answer(
        || value,
        || format!("{time}  {:<22}  {}\n", event.kind, clean(&event.text)),
    )
}

/// `cpr events`
pub fn events(output: Output, args: &Events) -> Result<u8> {
    let client = client()?;
    let pairs = [
        ("job", args.job.map(|job| job.to_string())),
        ("node", args.node.clone()),
        ("kind", args.kind.clone()),
    ];
    if !args.follow {
        for event in all::<Event>(&client, "/v1/events", &pairs)? {
            show(output, &event)?;
        }
        return Ok(0);
    }
    client.follow(&format!("/v1/events/stream{}", query(&pairs)), |value| {
        let event = serde_json::from_value(value)
            .map_err(|error| Error::new(ErrorKind::Damaged, "an event is not understood").with_source(error))?;
        show(output, &event)?;
        Ok(true)
    })?;
    Ok(0)
}

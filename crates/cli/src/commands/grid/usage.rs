//! `cpr usage`

use cpr_types::Result;
use gridcpr::grid::model::{Page, Usage};
use serde_json::json;

use super::client;
use crate::output::{Output, Table, size, to_json};

/// `cpr usage`
pub fn usage(output: Output) -> Result<u8> {
    let page: Page<Usage> = client()?.get("/v1/usage")?;
    let list = to_json(&page.items)?;
    output.answer(
        || json!({"usage": list}),
        || {
            let headings = ["USER", "OPERATIONS", "IMAGES", "STORED", "MOVED", "HELD"];
            let mut table = Table::new(&headings, &[1, 2, 3, 4, 5]);
            for user in &page.items {
                table.row([
                    user.owner.clone(),
                    user.operations.to_string(),
                    user.images.to_string(),
                    size(user.bytes_stored.unsigned_abs()),
                    size(user.bytes_moved.unsigned_abs()),
                    size(user.bytes_held.unsigned_abs()),
                ]);
            }
            table.render()
        },
    )?;
    Ok(0)
}

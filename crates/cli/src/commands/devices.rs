//! `cpr devices`

use cpr_engines::{DevicePlugin, Devices};
use cpr_types::Result;
use serde_json::{Value, json};

use crate::output::{Output, Table};

pub fn devices(output: Output) -> Result<u8> {
    let devices = Devices::load();
    for problem in &devices.problems {
        output.note(format!("{}: {}", problem.path.display(), problem.error.chain()));
    }
    let entry = |plugin: &DevicePlugin| {
        json!({
            "name": plugin.name,
            "description": plugin.description,
            "paths": plugin.paths,
            "program": plugin.program,
            "time_limit_s": plugin.time_limit_s,
            "file": plugin.file,
        })
    };
    let problems = devices.problems.iter();
    let problems: Vec<Value> = problems
        .map(|problem| json!({"file": problem.path, "reason": problem.error.chain()}))
        .collect();
    output.answer(
        || json!({"devices": devices.plugins().iter().map(entry).collect::<Vec<_>>(), "problems": problems}),
        || {
            let mut table = Table::new(&["NAME", "PATHS", "PROGRAM", "FILE"], &[]);
            for plugin in devices.plugins() {
                table.row([
                    plugin.name.clone(),
                    plugin.paths.join(" "),
                    match plugin.program.is_empty() {
                        true => "-".to_string(),
                        false => plugin.program.join(" "),
                    },
                    plugin.file.display().to_string(),
                ]);
            }
            table.render()
        },
    )?;
    Ok(0)
}

//! `cpr classes`

use cpr_engines::{Class, Registry};
use cpr_types::Result;
use serde_json::{Value, json};

use crate::output::{Output, clean};

pub fn classes(output: Output) -> Result<u8> {
    let registry = Registry::load()?;
    for problem in &registry.problems {
        output.note(format!("{}: {}", problem.path.display(), problem.error.chain()));
    }
    let members = |class: &Class| -> Vec<&str> {
        let engines = registry.engines().iter();
        let members = engines.filter(|engine| class.unmet(&engine.properties).is_none());
        members.map(|engine| engine.name.as_str()).collect()
    };
    let entry = |class: &Class| {
        json!({
            "name": class.name,
            "description": class.description,
            "requires": class
                .conditions
                .iter()
                .map(|condition| (condition.key.clone(), json!(condition.value)))
                .collect::<serde_json::Map<String, Value>>(),
            "members": members(class),
        })
    };
    let paragraph = |class: &Class| {
        let conditions: Vec<String> = class.conditions.iter().map(ToString::to_string).collect();
        let members = members(class);
        format!(
            "{}\n  {}\n  requires: {}\n  members:  {}\n",
            class.name,
            clean(&class.description),
            conditions.join(" "),
            if members.is_empty() {
                "none".to_string()
            } else {
                members.join(" ")
            },
        )
    };
    output.answer(
        || json!({"classes": registry.classes().iter().map(entry).collect::<Vec<_>>()}),
        || match output.is_quiet() {
            true => registry
                .classes()
                .iter()
                .map(|class| format!("{}\n", class.name))
                .collect(),
            false => registry.classes().iter().map(paragraph).collect(),
        },
    )?;
    Ok(0)
}

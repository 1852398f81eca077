//! One after the other with all jobs: what fails with one is told, and the others get their turn.

use cpr_node::Job;
use cpr_types::{Context, Result};
use serde_json::{Value, json};

use crate::output::{Output, error_json};

/// Does something with each of these jobs; gives the exit code of the first failure. `act` gives the result for JSON
/// and as text.
pub fn every(output: Output, jobs: Vec<Job>, act: &mut dyn FnMut(&Job) -> Result<(Value, String)>) -> Result<u8> {
    let mut code = 0;
    let (mut results, mut lines) = (Vec::new(), String::new());
    for job in jobs {
        match act(&job).context(|| format!("job {}", job.name())) {
            Ok((result, line)) => {
                results.push(result);
                lines += &line;
            }
            Err(error) => {
                if code == 0 {
                    code = error.kind().exit_code();
                }
                if output.is_json() {
                    let mut failed = error_json(&error);
                    failed["job"] = json!(job.name());
                    results.push(failed);
                } else {
                    output.error(&error);
                }
            }
        }
    }
    output.done(|| json!({ "jobs": results }), || lines)?;
    Ok(code)
}

//! Answers: JSON, whole or with some fields only, and errors as [`Problem`]s.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use cpr_api::model::Problem;
use cpr_types::{Error, ErrorKind};
use serde::Serialize;
use serde_json::Value;

/// An error on its way to the caller.
pub struct Failure(pub Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure(error)
    }
}

/// The status that fits a class of errors.
fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Usage => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        ErrorKind::AlreadyExists | ErrorKind::InUse | ErrorKind::Busy | ErrorKind::Gone => StatusCode::CONFLICT,
        ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::TimedOut => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (status(self.0.kind()), Json(Problem::from(&self.0))).into_response()
    }
}

/// What a handler gives.
pub type Answer = Result<Response, Failure>;

/// A value as an answer.
pub fn whole(value: &impl Serialize) -> Answer {
    Ok(Json(value).into_response())
}

/// A page of which only some fields are told, where `fields` names them.
pub fn selected(page: &impl Serialize, fields: Option<&str>) -> Answer {
    let Some(fields) = fields else { return whole(page) };
    let wanted: Vec<&str> = fields.split(',').collect();
    let mut value = serde_json::to_value(page)
        .map_err(|error| Error::new(ErrorKind::Internal, "encode the answer").with_source(error))?;
    let items = value.get_mut("items").and_then(Value::as_array_mut);
    for item in items.into_iter().flatten().filter_map(Value::as_object_mut) {
        if let Some(unknown) = wanted.iter().find(|name| !item.contains_key(**name)) {
            return Err(Error::new(ErrorKind::Usage, format!("there is no field {unknown:?}")).into());
        }
        item.retain(|name, _| wanted.contains(&name.as_str()));
    }
    whole(&value)
}

//! Why an exchange with the upstream gave no answer.

use std::time::Duration;

use crate::verdict::UpstreamError;

/// The upstream gave no answer.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: UpstreamError,
    pub(super) cause: String,
}

/// No answer came in time.
pub(super) fn late(timeout: Duration) -> Failed {
    Failed { error: UpstreamError::Timeout, cause: format!("no answer within {timeout:?}") }
}

/// No head of an answer came.
pub(super) fn unsent(error: hyper_util::client::legacy::Error) -> Failed {
    if error.is_connect() {
        Failed { error: UpstreamError::Unreachable, cause: chain(&error) }
    } else {
        broken(error)
    }
}

/// The connection failed.
pub(super) fn broken(error: impl std::error::Error) -> Failed {
    Failed { error: UpstreamError::Broken, cause: chain(&error) }
}

/// The error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

//! The error type of the crate. Every message names the subject, the value, the allowed range and a way out.

use thiserror::Error;

/// Result type of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the crate, one variant per Python exception.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument or setting is out of range.
    #[error("{0}")]
    InvalidArgument(String),
    /// Tokenizer data (a file or table) cannot be read or represented.
    #[error("{0}")]
    Tokenizer(String),
    /// A request can never be served with the given cache and limits.
    #[error("{0}")]
    Capacity(String),
    /// A request's prompt and new tokens exceed the context.
    #[error("{0}")]
    ContextLength(String),
    /// Too many requests wait; the same request may succeed later.
    #[error("{0}")]
    QueueFull(String),
    /// An answer can't go on as its grammar wants it to.
    #[error("{0}")]
    Grammar(String),
    /// No unfinished request has this id.
    #[error("unknown request id {0}; it was never added, or it already finished")]
    UnknownRequest(u64),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Training data is missing or unreadable.
    #[error("{0}")]
    Data(String),
    /// An invariant of this crate was broken: a bug in the crate, not in the caller's input.
    #[error("internal error: {0}; please report it")]
    Internal(String),
}

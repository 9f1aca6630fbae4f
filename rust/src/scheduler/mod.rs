//! Which tokens run next.

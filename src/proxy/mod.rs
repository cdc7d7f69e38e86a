//! The life of a request, from its route to its last byte.

pub mod route;

//! The command line tool's entry point.
fn main() {}

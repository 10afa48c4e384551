//! `layer diff`: where the devices of two layers or images differ.

use std::{
    fmt::Write as _,
    fs::File,
    io::{BufRead, BufReader},
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use clap::Args;
use stratabd::{
    offline::{Compared, Stack, default_threads, diff},
    server::{failure::Failure, layers::read_stack},
};

use crate::{
    offline,
    output::{Output, size},
};

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A sealed layer in any form, or an image configuration, whose writable layer counts
    left: PathBuf,
    /// What it is compared with
    right: PathBuf,
    /// Threads that read; as many as there are processors by default
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl DiffArgs {
    pub(crate) fn run(&self, output: &Output) -> Result<(), Failure> {
        let (left, right) = (stack(&self.left)?, stack(&self.right)?);
        let threads = self.threads.unwrap_or_else(default_threads);
        let compared = offline::run("comparing", move |watch| diff(&left, &right, threads, watch))?;
        output.print(&compared, describe)
    }
}

/// A configuration is a JSON object, and no layer begins with a brace.
fn stack(path: &Path) -> Result<Stack, Failure> {
    let head = || File::open(path).and_then(|file| BufReader::new(file).fill_buf().map(<[u8]>::to_vec));
    // What is neither may have nothing to read yet.
    let is_config = path.is_file() && head().is_ok_and(|head| head.trim_ascii_start().starts_with(b"{"));
    match is_config {
        true => read_stack(path),
        false => Ok(Stack { lowers: vec![path.to_owned()], upper: None }),
    }
}

fn describe(compared: &Compared) -> String {
    let mut text = String::new();
    for range in &compared.ranges {
        // Nothing can go wrong when writing to a string.
        let _ = writeln!(text, "{} {}", range.offset_bytes, range.len_bytes);
    }
    let [left, right] = compared.size_bytes.map(size);
    let verdict = match (compared.equal, compared.size_bytes) {
        (true, _) => "the devices are equal".to_owned(),
        (false, [a, b]) if a != b => format!("the devices differ: {left} and {right}"),
        (false, _) => {
            let count = compared.ranges.len();
            format!("the devices differ in {} bytes in {count} ranges", compared.differing_bytes)
        }
    };
    text.push_str(&verdict);
    text
}

//! The program under the names of overlaybd's own tools: with their flags, their exit status and their words, so that scripts
//! and the convertor run on it unchanged. Where upstream says that all went well when it did not, this says what failed.

mod apply;
mod commit;
mod convertor;
mod create;
mod merge;
mod resize;
mod upload;
mod zfile;

use std::{
    error::Error,
    ffi::{OsStr, OsString},
    fs::{self, Metadata},
    num::ParseIntError,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{
    Arg, ArgAction, Parser,
    builder::{PathBufValueParser, TypedValueParser},
    error::ErrorKind,
};
use stratabd::{
    format::{
        lsmt::Packing,
        uuid::Uuid,
        zfile::{Algorithm, BlockFormat},
    },
    offline::{PackOptions, default_threads},
    server::failure::{Failure, FailureClass},
};

use crate::output::Output;

/// What upstream's `exit(-1)` comes to.
const FAILED: u8 = 255;

/// Runs the tool that the program was called as, or is `None` where that is none of upstream's.
pub(crate) fn run(arguments: &[OsString]) -> Option<ExitCode> {
    let name = Path::new(arguments.first()?).file_name().and_then(OsStr::to_str)?;
    Some(match name {
        "convertor" => tool(arguments, 1, convertor::run),
        "overlaybd-apply" => tool(arguments, FAILED, apply::run),
        "overlaybd-commit" => tool(arguments, FAILED, commit::run),
        "overlaybd-create" => tool(arguments, FAILED, create::run),
        "overlaybd-merge" => tool(arguments, FAILED, merge::run),
        "overlaybd-resize" => tool(arguments, 1, resize::run),
        "overlaybd-zfile" => tool(arguments, FAILED, zfile::run),
        _ => return None,
    })
}

/// Parses and runs one; a failure that is not of the command line exits with `failed`.
fn tool<A: Parser>(arguments: &[OsString], failed: u8, run: fn(A) -> Result<(), Failure>) -> ExitCode {
    let parsed = match parse::<A>(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            // When even this cannot be written there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(parser_code(&error));
        }
    };
    match run(parsed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            Output::new(false).fail(&failure);
            ExitCode::from(failed)
        }
    }
}

/// Parses a command line as upstream's parser does, which takes a flag that is given again, one with a value such as `=true` or
/// `=off`, and for the value of an option whatever follows it.
fn parse<A: Parser>(arguments: &[OsString]) -> Result<A, clap::Error> {
    let is_flag = |argument: &Arg| matches!(argument.get_action(), ArgAction::SetTrue);
    let command = A::command().mut_args(|it| {
        if is_flag(&it) {
            let id = it.get_id().clone();
            it.overrides_with(id)
        } else {
            let takes_any = !it.is_positional() && !it.is_require_equals_set();
            it.allow_hyphen_values(takes_any)
        }
    });
    let flags: Vec<&str> = command
        .get_arguments()
        .filter(|it| is_flag(it))
        .flat_map(|it| it.get_long().into_iter().chain(it.get_all_aliases().into_iter().flatten()))
        .collect();
    let given: Vec<OsString> = arguments.iter().filter_map(|it| set_flag(&flags, it)).collect();
    A::from_arg_matches(&command.try_get_matches_from(given)?)
}

/// `--flag` for one of the `flags` with a value that means yes, nothing for one that means no, and all else as it is.
fn set_flag(flags: &[&str], argument: &OsString) -> Option<OsString> {
    let parts = argument.to_str().and_then(|text| text.strip_prefix("--")?.split_once('='));
    let Some((name, value)) = parts.filter(|(name, _)| flags.contains(name)) else {
        return Some(argument.clone());
    };
    match truth(value) {
        Ok(is_set) => is_set.then(|| format!("--{name}").into()),
        Err(_) => Some(argument.clone()),
    }
}

/// What the value of a flag means.
fn truth(value: &str) -> Result<bool, ParseIntError> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "enable" | "t" | "y" | "+" => Ok(true),
        "false" | "off" | "no" | "disable" | "f" | "n" | "-" => Ok(false),
        number => number.parse::<i64>().map(|number| number > 0),
    }
}

/// A whole number as upstream's parser reads it: with `0x` in front it has 16 for its base, and with another `0` it has 8.
fn integer(text: &str) -> Result<i64, ParseIntError> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let hexadecimal = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let (digits, base) = match (hexadecimal, digits.strip_prefix('0')) {
        (Some(digits), _) => (digits, 16),
        (None, Some(octal)) if !octal.is_empty() => (octal, 8),
        (None, _) => (digits, 10),
    };
    // A second sign would be taken for one otherwise.
    let digits = if digits.starts_with(['+', '-']) { "" } else { digits };
    i64::from_str_radix(&format!("{sign}{digits}"), base)
}

/// The exit status of upstream's parser of the command line, CLI11.
fn parser_code(error: &clap::Error) -> u8 {
    match error.kind() {
        ErrorKind::DisplayHelp => 0,
        ErrorKind::ValueValidation if error.source().is_some_and(|it| it.is::<ParseIntError>()) => 104,
        ErrorKind::ValueValidation => 105,
        ErrorKind::MissingRequiredArgument => 106,
        ErrorKind::UnknownArgument | ErrorKind::TooManyValues => 109,
        ErrorKind::InvalidValue
        | ErrorKind::NoEquals
        | ErrorKind::WrongNumberOfValues
        | ErrorKind::ArgumentConflict => 114,
        _ => 127,
    }
}

/// A file that must be there, of whatever kind.
fn existing_file() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.metadata() {
        Ok(found) if !found.is_dir() => Ok(path),
        _ => Err("the file does not exist"),
    })
}

/// Removes what is no regular file at `path`, where `-f` is to replace it: upstream replaces a link itself, not what it means.
fn make_way(path: &Path, force: bool) -> Result<(), Failure> {
    let is_in_the_way =
        |it: Metadata| it.is_symlink() || it.file_type().is_fifo() || it.file_type().is_socket();
    if !force || !fs::symlink_metadata(path).is_ok_and(is_in_the_way) {
        return Ok(());
    }
    let failed = |source| {
        Failure::with_source(FailureClass::Internal, format!("{}: cannot replace it", path.display()), source)
    };
    fs::remove_file(path).map_err(failed)
}

/// A UUID; upstream takes an empty one for none.
fn uuid(text: Option<&str>) -> Result<Option<Uuid>, Failure> {
    let parse = |text: &str| {
        text.parse().map_err(|source| Failure::with_source(FailureClass::Usage, text.to_owned(), source))
    };
    text.filter(|text| !text.is_empty()).map(parse).transpose()
}

/// The blocks that `--algorithm` and `--bs`, in KiB, ask for.
fn block_format(algorithm: Option<&str>, kib: i64) -> Result<BlockFormat, Failure> {
    let invalid = |option| Failure::new(FailureClass::Usage, format!("invalid '{option}' parameters."));
    let algorithm = match algorithm {
        None | Some("" | "lz4") => Algorithm::Lz4,
        Some("zstd") => Algorithm::Zstd,
        Some(_) => return Err(invalid("--algorithm")),
    };
    let bytes = u32::try_from(kib).ok().and_then(|kib| kib.checked_mul(1024));
    bytes.and_then(|bytes| BlockFormat::new(algorithm, bytes).ok()).ok_or_else(|| invalid("--bs"))
}

/// A layer as upstream lays it out.
fn pack_options(compression: Option<BlockFormat>) -> PackOptions {
    PackOptions {
        packing: Packing::AsUpstream,
        compression,
        tar: false,
        final_header: false,
        threads: default_threads(),
        overwrite: false,
        allow_torn: false,
    }
}

/// Refuses what upstream's tools can do and this cannot.
fn refuse(is_given: bool, what: &str) -> Result<(), Failure> {
    match is_given {
        true => Err(Failure::new(FailureClass::Usage, format!("not yet supported: {what}"))),
        false => Ok(()),
    }
}

/// Prints a line of upstream's.
fn say(line: &str) -> Result<(), Failure> {
    crate::output::write_out(format!("{line}\n").as_bytes())
}

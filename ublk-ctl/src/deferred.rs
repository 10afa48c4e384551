//! Commands whose options are set up only where they are needed.
//!
//! There are some twenty commands with some ten options each. Setting all of them up is a good part of the work of a program that
//! then asks the daemon for one thing and ends.

use clap::{ArgMatches, Args, Command, Error, FromArgMatches, Subcommand, builder::Resettable};

/// The options, or the commands below it, of a command: set up when the command was typed, or when its help, its manual page or its
/// completions are made.
#[derive(Debug)]
pub(crate) struct Deferred<A>(pub(crate) A);

impl<A: FromArgMatches> FromArgMatches for Deferred<A> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        A::from_arg_matches(matches).map(Self)
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, Error> {
        A::from_arg_matches_mut(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }

    fn update_from_arg_matches_mut(&mut self, matches: &mut ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches_mut(matches)
    }
}

impl<A: Args> Args for Deferred<A> {
    fn augment_args(command: Command) -> Command {
        command.defer(|command| described(command, A::augment_args))
    }

    fn augment_args_for_update(command: Command) -> Command {
        command.defer(|command| described(command, A::augment_args_for_update))
    }
}

impl<A: Subcommand> Subcommand for Deferred<A> {
    fn augment_subcommands(command: Command) -> Command {
        command.defer(|command| described(command, A::augment_subcommands))
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        command.defer(|command| described(command, A::augment_subcommands_for_update))
    }

    fn has_subcommand(name: &str) -> bool {
        A::has_subcommand(name)
    }
}

/// What `set_up` makes of `command`, which keeps its own description: what options share says what they are for.
fn described(command: Command, set_up: fn(Command) -> Command) -> Command {
    let (about, long_about) = (command.get_about().cloned(), command.get_long_about().cloned());
    set_up(command).about(Resettable::from(about)).long_about(Resettable::from(long_about))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// What all of these options are for.
    #[derive(Debug, Args)]
    struct Shared {
        #[arg(long)]
        depth: Option<u16>,
    }

    #[derive(Debug, Args)]
    struct AddArgs {
        #[command(flatten)]
        shared: Shared,
    }

    #[derive(Debug, Subcommand)]
    enum Verb {
        /// Makes one
        Add(Deferred<AddArgs>),
    }

    #[derive(Debug, Parser)]
    struct Cli {
        #[arg(long, global = true)]
        json: bool,
        #[command(subcommand)]
        verb: Deferred<Verb>,
    }

    #[test]
    fn what_is_deferred_is_parsed_as_ever() {
        let cli = Cli::try_parse_from(["x", "add", "--depth", "7", "--json"]).unwrap();
        let Deferred(Verb::Add(Deferred(args))) = cli.verb;
        assert_eq!((args.shared.depth, cli.json), (Some(7), true));
        assert!(Cli::try_parse_from(["x", "add", "--width", "7"]).is_err());
        assert!(Cli::try_parse_from(["x", "remove"]).is_err());
    }

    #[test]
    fn a_command_keeps_its_description() {
        let help = Cli::try_parse_from(["x", "add", "--help"]).unwrap_err().to_string();
        assert!(help.starts_with("Makes one\n"), "{help}");
        assert!(help.contains("--depth") && help.contains("--json"), "{help}");
    }
}

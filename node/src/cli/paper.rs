//! What is made from the command line's definition: completions for shells, manual pages.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::Failure;

/// Name of the program, as it is installed.
const PROGRAM: &str = "mwb-node";

#[derive(Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Args)]
pub(super) struct ManArgs {
    /// Write a page for each command into this folder, instead of printing the program's own
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints a completion script for a shell.
///
/// # Errors
/// When standard output cannot be written.
pub(super) fn completions(args: &CompletionsArgs, mut command: clap::Command) -> Result<(), Failure> {
    // Made whole before it is written: the generator panics when a pipe is closed.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, PROGRAM, &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}

/// Prints the manual page, or writes those of all commands.
///
/// # Errors
/// When standard output or the folder cannot be written.
pub(super) fn man(args: &ManArgs, command: clap::Command) -> Result<(), Failure> {
    let command = command.name(PROGRAM);
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        return Ok(std::io::stdout().write_all(&page)?);
    };
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(command, dir))
        .map_err(|error| Failure::new(format!("writing the manual pages to {}: {error}", dir.display())))
}

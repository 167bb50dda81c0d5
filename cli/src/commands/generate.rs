//! `nipfs completions` and `nipfs man`: what packages install beside the binary.

use crate::args::Cli;
use crate::outcome::Stop;
use crate::printer::Printer;
use clap::CommandFactory;

/// Prints a completion script.
pub(crate) fn completions(printer: &Printer, shell: clap_complete::Shell) -> Result<(), Stop> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "nipfs", &mut script);
    printer.raw(&script)
}

/// Prints the manual: one page with a section for each verb.
pub(crate) fn man(printer: &Printer) -> Result<(), Stop> {
    let mut page = Vec::new();
    let mut command = Cli::command();
    command.build();
    let mut waiting = vec![command];
    while let Some(command) = waiting.pop() {
        let subcommands = command.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help");
        let mut verbs: Vec<_> = subcommands.cloned().collect();
        verbs.reverse();
        waiting.extend(verbs);
        clap_mangen::Man::new(command).render(&mut page).map_err(|error| Stop::writing(&error))?;
    }
    printer.raw(&page)
}

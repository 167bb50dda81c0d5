//! The verbs, one module or function each: ask the node, print what it says.

mod cache;
mod config;
mod fetch;
mod generate;
mod key;
mod mirror;
mod pin;
mod publish;
pub(crate) mod serve;
mod status;
mod store;

use crate::args::Command;
use crate::config::Settings;
use crate::door::Door;
use crate::outcome::Stop;
use crate::printer::Printer;
use nipfs_node::control::client::{Client, ClientError, Event};
use nipfs_node::control::protocol::{Class, Done, Failure, Item, Request};
use tokio::sync::OnceCell;

/// What every verb works with: the settings, the printer, and the node behind the door.
#[derive(Debug)]
pub(crate) struct App<'a> {
    /// What flags, environment and file say.
    pub(crate) settings: Settings,
    /// All output.
    pub(crate) printer: &'a Printer,
    door: OnceCell<Door>,
}

impl<'a> App<'a> {
    /// Nothing is opened yet: some verbs need no node.
    pub(crate) fn new(settings: Settings, printer: &'a Printer) -> Self {
        Self { settings, printer, door: OnceCell::new() }
    }

    /// The node that answers; the first call finds it.
    ///
    /// # Errors
    /// As [`Door::open`].
    pub(crate) async fn door(&self) -> Result<&Door, Failure> {
        let open = || async {
            let door = Door::open(serve::node(&self.settings)?).await?;
            self.printer.note(door.name());
            Ok(door)
        };
        self.door.get_or_try_init(open).await
    }

    /// A connection to the node.
    ///
    /// # Errors
    /// As [`Door::open`] and [`Door::client`].
    pub(crate) async fn client(&self) -> Result<Client, Failure> {
        self.door().await?.client().await
    }

    /// Asks for something that has items; shows reports and hands each item to `on`.
    ///
    /// # Errors
    /// The node's failure, and what `on` returns.
    pub(crate) async fn items(
        &self,
        request: Request,
        mut on: impl FnMut(Item) -> Result<(), Stop>,
    ) -> Result<Done, Stop> {
        let mut client = self.client().await.map_err(Stop::NoNode)?;
        let mut exchange = client.request(request).await?;
        loop {
            match exchange.next().await? {
                Event::Report(report) => self.printer.report(&report),
                Event::Item(item) => on(item)?,
                Event::Done(done) => return Ok(done),
                event @ (Event::Data(_) | Event::Restart) => return Err(out_of_turn(&event).into()),
            }
        }
    }

    /// Asks for something that is answered by its end alone.
    ///
    /// # Errors
    /// The node's failure.
    pub(crate) async fn ask(&self, request: Request) -> Result<Done, Failure> {
        Ok(self.client().await?.call(request).await?)
    }

    /// Prints why an item failed, naming it.
    pub(crate) fn item_failed(&self, name: &str, failure: &Failure) {
        let mut failure = failure.clone();
        if !failure.message.contains(name) {
            failure.message = format!("{name}: {}", failure.message);
        }
        self.printer.failure(&failure);
    }

    /// Ends the node, if it was opened here.
    pub(crate) async fn close(self) {
        if let Some(door) = self.door.into_inner() {
            door.close().await;
        }
    }
}

/// Runs a verb.
///
/// # Errors
/// How it ended, if not well.
pub(crate) async fn run(app: &App<'_>, command: Command) -> Result<(), Stop> {
    match command {
        Command::Publish(args) => publish::run(app, args).await,
        Command::Serve(_) => serve::run(&app.settings, app.printer).await,
        Command::Fetch(args) => fetch::run(app, args).await,
        Command::Mirror(verb) => mirror::run(app, verb).await,
        Command::Pin(verb) => pin::run(app, verb).await,
        Command::Gc(args) => store::gc(app, &args).await,
        Command::Verify(args) => store::verify(app, &args).await,
        Command::Key(verb) => key::run(app, verb),
        Command::Id => status::id(app).await,
        Command::Status => status::status(app).await,
        Command::Config(verb) => config::run(app, &verb),
        Command::Completions { shell } => generate::completions(app.printer, shell),
        Command::Man => generate::man(app.printer),
    }
}

/// Reads on a thread that may wait for ever, so that signals are heard meanwhile.
async fn patiently<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let reading = tokio::task::spawn_blocking(read);
    reading.await.map_err(|error| Failure::from_error(Class::Failed, &error))?
}

/// The node said something that does not answer what was asked.
fn out_of_turn(answer: &impl std::fmt::Debug) -> Failure {
    let text = format!("{answer:?}");
    ClientError::OutOfTurn(text.chars().take(200).collect()).into()
}

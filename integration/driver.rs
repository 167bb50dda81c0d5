//! Foreign nodes in processes of their own, which take a JSON command a line and give a JSON answer a line.

use crate::common::STUCK;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;

/// The process. Killed when dropped.
pub(crate) struct Driver {
    child: Child,
    stdin: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl Driver {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}: run `make test`", command.get_program()));
        let stdin = child.stdin.take().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, stdin, answers }
    }

    /// Gives a command and waits for its answer, but not for ever.
    #[track_caller]
    pub(crate) fn ask(&mut self, command: &Value) -> Value {
        self.try_ask(command).unwrap_or_else(|| panic!("no answer to {command}"))
    }

    /// The same; `None` when no answer comes.
    pub(crate) fn try_ask(&mut self, command: &Value) -> Option<Value> {
        writeln!(self.stdin, "{command}").unwrap();
        let answer = self.answers.recv_timeout(STUCK).ok()?;
        Some(serde_json::from_str(&answer).unwrap())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

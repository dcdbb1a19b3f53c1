//! Measures pythond and its floors in one run and prints one table.
//!
//! Floors are what the operating system and CPython cost without us; aims are
//! ratios to the floor of the same run. A missed aim is shown and is no failure.
#![forbid(unsafe_code)]

mod bench;
mod client;
mod cutter;
mod far;
mod raw_tls;
mod relay;
mod rows;
mod setup;
mod table;
mod terminal;
mod worker;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use crate::bench::Bench;
use crate::setup::Daemon;
use crate::table::{Row, Table};

#[derive(Parser)]
#[command(about = "Measure pythond and its floors in one run")]
struct Args {
    /// Only these, separated by commas
    #[arg(long, value_enum, value_delimiter = ',')]
    rows: Vec<Measure>,
    /// A short run: fewer rounds and sessions
    #[arg(long)]
    quick: bool,
    /// An environment with numpy and pandas
    #[arg(long)]
    venv: Option<PathBuf>,
    /// Directory of the programs that are measured [default: that of this one]
    #[arg(long)]
    programs: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    Oneshot,
    Warm,
    Throughput,
    New,
    Idle,
    Interrupt,
    Control,
    Fire,
    Attach,
    Fork,
    FirstByte,
    Print,
    Restart,
    Outage,
    Crowd,
    Journal,
    TlsNew,
    TlsWarm,
    TlsOutput,
    Cuts,
}

impl Measure {
    fn run(self, bench: &mut Bench) -> Result<Vec<Row>> {
        match self {
            Self::Oneshot => bench.oneshot(),
            Self::Warm => bench.warm(),
            Self::Throughput => bench.throughput(),
            Self::New => bench.new_to_first(),
            Self::Idle => bench.idle(),
            Self::Interrupt => bench.interrupt(),
            Self::Control => bench.control(),
            Self::Fire => bench.fire(),
            Self::Attach => bench.attach(),
            Self::Fork => bench.fork(),
            Self::FirstByte => bench.first_byte(),
            Self::Print => bench.print(),
            Self::Restart => bench.restart(),
            Self::Outage => bench.outage(),
            Self::Journal => bench.journal(),
            Self::Crowd => bench.crowd(),
            Self::TlsNew => bench.tls_new(),
            Self::TlsWarm => bench.tls_warm(),
            Self::TlsOutput => bench.tls_output(),
            Self::Cuts => bench.cuts(),
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let own = std::env::current_exe()?;
    let programs = match &args.programs {
        Some(directory) => &directory.canonicalize()?,
        None => own.parent().context("this program is in no directory")?,
    };
    let chosen = if args.rows.is_empty() {
        Measure::value_variants()
    } else {
        &args.rows
    };
    let mut rows = Vec::new();
    let mut talk = std::io::stderr();
    for measure in chosen {
        let name = measure
            .to_possible_value()
            .context("a measure has a name")?;
        writeln!(talk, "measuring {}", name.get_name())?;
        // A daemon for each, so that nothing is left over from the one before.
        let daemon = Daemon::start(programs)?;
        let python = python_of(&daemon)?;
        let venv = args.venv.clone();
        rows.extend(measure.run(&mut Bench {
            daemon,
            python,
            venv,
            quick: args.quick,
        })?);
    }
    write!(std::io::stdout(), "\n{}", Table(rows))?;
    Ok(())
}

/// The interpreter that sessions get when nobody says which.
fn python_of(daemon: &Daemon) -> Result<PathBuf> {
    let mut connection = daemon.connect()?;
    let answer = connection.ask("new which --json")?;
    let python = answer["python"]["executable"]
        .as_str()
        .context("no executable")?
        .into();
    connection.request(&client::frame("kill which"))?;
    Ok(python)
}

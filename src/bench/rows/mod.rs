//! The measures, one file for each group of rows. Ours and floor take turns in
//! each, so that what the machine does meanwhile hits both.

mod attach;
mod control;
mod crowd;
mod cuts;
mod fire;
mod fork;
mod idle;
mod interrupt;
mod journal;
mod new;
mod outage;
mod output;
mod restart;
mod run;
mod throughput;
mod tls;

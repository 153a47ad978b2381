// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `ferronic man`: manual pages.

use clap::{Args, CommandFactory};

use super::{Cli, Failure, print};

/// Options of `ferronic man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The subcommand whose page is wanted, such as `serve` or `link flap`; none for the page of
    /// `ferronic` itself.
    #[arg(value_name = "SUBCOMMAND")]
    subcommand: Vec<String>,
}

/// Runs `ferronic man`.
pub fn run(args: &ManArgs) -> Result<(), Failure> {
    print(&page(&args.subcommand)?)
}

fn page(names: &[String]) -> Result<String, Failure> {
    let mut command = Cli::command();
    command.build();
    let mut title = command.get_name().to_string();
    for name in names {
        command = command
            .find_subcommand(name)
            .ok_or_else(|| Failure::Usage(format!("there is no subcommand '{title} {name}'")))?
            .clone();
        title = format!("{title} {name}");
    }
    let mut roff = Vec::new();
    clap_mangen::Man::new(command)
        .title(title.replace(' ', "-"))
        .render(&mut roff)
        .map_err(|e| Failure::Operation(format!("cannot make the page: {e}")))?;
    Ok(String::from_utf8_lossy(&roff).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subcommand_has_a_page_and_others_are_refused() {
        assert!(page(&[]).unwrap().contains("Exit codes"));
        assert!(page(&["serve".into()]).unwrap().contains("uplink"));
        assert!(
            page(&["link".into(), "flap".into()])
                .unwrap()
                .contains("count")
        );
        assert!(matches!(page(&["dance".into()]), Err(Failure::Usage(_))));
    }
}

//! Where the process of a rank runs: what ranks tell each other at the start.

use crate::device::pool::allowed_cpus;

/// The place of one rank's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Number of the process on its machine.
    pub process: i32,
    /// CPUs it may use.
    pub cpus: Vec<usize>,
    /// What tells machines apart, and containers that number processes by themselves.
    pub machine: String,
}

impl Site {
    /// Where this process runs.
    pub fn of_this_process() -> Site {
        // One per start of the machine's system.
        let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let numbering = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        Site {
            process: std::process::id() as i32,
            cpus: allowed_cpus(),
            machine: format!("{} {}", machine.trim(), numbering.display()),
        }
    }

    /// As a line of text.
    pub fn write(&self) -> String {
        let cpus: Vec<String> = self.cpus.iter().map(usize::to_string).collect();
        format!("{};{};{}", self.process, cpus.join(","), self.machine)
    }

    /// From [`Site::write`].
    pub fn read(line: &str) -> Option<Site> {
        let mut parts = line.splitn(3, ';');
        let process = parts.next()?.parse().ok()?;
        let cpus = parts.next()?.split(',').filter(|cpu| !cpu.is_empty());
        let cpus = cpus.map(|cpu| cpu.parse().ok()).collect::<Option<_>>()?;
        Some(Site { process, cpus, machine: parts.next()?.to_owned() })
    }

    /// Which of those that share this one's CPUs it is, and how many they are. A launcher that gives every process CPUs of its
    /// own leaves nothing to share.
    pub fn share(&self, all: &[Site]) -> (usize, usize) {
        let beside: Vec<&Site> =
            all.iter().filter(|site| site.machine == self.machine && site.cpus == self.cpus).collect();
        (beside.iter().position(|site| *site == self).unwrap_or(0), beside.len().max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(process: i32, cpus: &[usize], machine: &str) -> Site {
        Site { process, cpus: cpus.to_vec(), machine: machine.to_owned() }
    }

    #[test]
    fn sites_are_written_and_read() {
        for site in [Site::of_this_process(), site(7, &[0, 3], "a;b c"), site(7, &[], "")] {
            assert_eq!(Site::read(&site.write()), Some(site));
        }
        assert_eq!(Site::read("x;1;m"), None);
        assert_eq!(Site::read("1;a;m"), None);
        assert_eq!(Site::read("1;1"), None);
    }

    #[test]
    fn processes_with_the_same_cpus_share_them() {
        let all = [
            site(1, &[0, 1], "a"),
            site(1, &[0, 1], "b"),
            site(2, &[0, 1], "a"),
            site(3, &[2], "a"),
            site(4, &[0, 1], "a"),
        ];
        let shares = all.each_ref().map(|site| site.share(&all));
        assert_eq!(shares, [(0, 3), (0, 1), (1, 3), (0, 1), (2, 3)]);
    }
}

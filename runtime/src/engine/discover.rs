//! Whether something started this process as one of several ranks, and which MPI library it speaks.
//!
//! The first that matches counts:
//!
//! | launcher | environment | library |
//! |---|---|---|
//! | Open MPI's `mpirun`, `prterun` | `OMPI_COMM_WORLD_RANK`, `OMPI_COMM_WORLD_SIZE` | `libmpi.so.40` |
//! | Hydra (`mpirun` of MPICH, Intel MPI, MVAPICH), PALS | `PMI_RANK`, `PMI_SIZE` | `libmpich.so.12`, `libmpi.so.12` |
//! | `srun` | `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS` | all of these |
//!
//! The shell of `sbatch` and `salloc` has `SLURM_PROCID` too, but is no step. `MLC_MPI` names another library file. A launcher
//! that starts one process is none.

use crate::failure::Failure;

/// A launcher's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Who started this process.
    pub by: &'static str,
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub ranks: usize,
    /// Library files to try, in order.
    pub libraries: Vec<String>,
}

impl Launched {
    /// A failure that all ranks meet, with its message on the first one only: once is enough.
    pub fn only_first(&self, failure: Failure) -> Failure {
        let message = if self.rank == 0 { failure.message } else { String::new() };
        Failure { message, ..failure }
    }
}

/// Variable with the file of the MPI library.
pub const LIBRARY_VARIABLE: &str = "MLC_MPI";

const OPEN_MPI: &[&str] = &["libmpi.so.40"];
const MPICH: &[&str] = &["libmpich.so.12", "libmpi.so.12"];

/// Looks for a launcher of several ranks in an environment.
pub fn discover(variable: impl Fn(&str) -> Option<String>) -> Option<Launched> {
    let number = |name: &str| variable(name)?.parse::<usize>().ok();
    let both: Vec<&str> = OPEN_MPI.iter().chain(MPICH).copied().collect();
    let sources: [(&str, &str, &str, &[&str]); 3] = [
        ("Open MPI's launcher", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", OPEN_MPI),
        ("a launcher of the MPICH family", "PMI_RANK", "PMI_SIZE", MPICH),
        ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", &both),
    ];
    let found = sources
        .into_iter()
        .find_map(|(by, rank, ranks, libraries)| Some((by, number(rank)?, number(ranks)?, libraries)));
    let (by, rank, ranks, libraries) = found.filter(|(_, _, ranks, _)| *ranks > 1)?;
    let named = variable(LIBRARY_VARIABLE).filter(|file| !file.is_empty());
    let libraries =
        named.map_or_else(|| libraries.iter().map(|l| (*l).to_owned()).collect(), |file| vec![file]);
    Some(Launched { by, rank, ranks, libraries })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(environment: &[(&str, &str)]) -> Option<(&'static str, usize, usize, String)> {
        let variable =
            |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        discover(variable).map(|l| (l.by, l.rank, l.ranks, l.libraries.join(" ")))
    }

    #[test]
    fn launchers_are_told_by_their_environment() {
        let open = [("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4")];
        let srun = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "8")];
        assert_eq!(found(&open), Some(("Open MPI's launcher", 2, 4, "libmpi.so.40".to_owned())));
        let hydra = found(&[("PMI_RANK", "0"), ("PMI_SIZE", "3")]).unwrap();
        assert_eq!((hydra.1, hydra.2, hydra.3.as_str()), (0, 3, "libmpich.so.12 libmpi.so.12"));
        let both = [&srun[..], &open].concat();
        assert_eq!(found(&both).unwrap().2, 4, "mpirun inside a step");
        assert_eq!(found(&srun).unwrap().3, "libmpi.so.40 libmpich.so.12 libmpi.so.12");
        assert_eq!(
            found(&[&srun[..], &[("MLC_MPI", "/opt/libmpi.so")]].concat()).unwrap().3,
            "/opt/libmpi.so"
        );
    }

    #[test]
    fn a_plain_start_is_no_launch() {
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")]), None);
        assert_eq!(found(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]), None, "the shell of sbatch");
        assert_eq!(found(&[("PMI_RANK", "x"), ("PMI_SIZE", "3")]), None);
    }
}

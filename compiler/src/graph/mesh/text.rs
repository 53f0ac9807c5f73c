//! Text of sharded graphs and of what one rank computes.

use crate::graph::parse::parse;
use crate::graph::print::print;
use crate::graph::verify::{Stage, verify};

const SHARDED: &str = r#"graph @m on data=2 over nodes, tensor=4 {
  %x = input below 10 : i32[batch=8 @data in 2, seq=16]
  %w = param "w" = normal(0.5) : f32[v=8 @tensor, d=4]
  %h = gather %w, %x along v : f32[batch=8 @data, seq=16, d=4] partial(sum tensor)
  %y = reshard %h because "rule" : f32[batch=8 @data, seq=16 @tensor, d=4]
  %u = reshard %y may replicate because "lot" : f32[batch=8, seq=16 @data, d=4 @tensor]
  %z = reduce_sum %y over batch, seq, d : f32[] partial(sum data, sum tensor)
  return z = %z
}
"#;

const SPMD: &str = r#"graph @m on data=2, tensor=4 {
  %x = param "x" = constant(0.0) : f32[batch=4 @data, seq=16, d=4]
  %p = local_part %x along seq over tensor : f32[batch=4 @data, seq=4 @tensor, d=4]
  %a, %b = all_gather %p, %x over tensor join seq, d because "both" : f32[batch=4 @data, seq=16, d=4], f32[batch=4, seq=16, d=16]
  %c = all_to_all %a over data tensor split seq join d : f32[batch=4, seq=2, d=32]
  %e = reduce_scatter_sum %c over tensor split d wire bf16 : f32[batch=4, seq=2, d=8]
  %f = all_reduce_max %e over data : f32[batch=4, seq=2, d=8]
  return f = %f
}
"#;

#[test]
fn graphs_on_a_mesh_read_back() {
    for (text, stage) in [(SHARDED, Stage::Sharded), (SPMD, Stage::Spmd)] {
        let graph = parse(text).unwrap();
        assert_eq!(print(&graph), text);
        verify(&graph, stage).unwrap();
    }
}

#[test]
fn collectives_have_the_axes_of_their_kind() {
    let wrong = SPMD.replace("over data tensor split seq join d", "over data tensor join d");
    let error = verify(&parse(&wrong).unwrap(), Stage::Spmd).unwrap_err().to_string();
    assert!(error.contains("other axes than its kind"), "{error}");
    let uneven = SPMD.replace("on data=2, tensor=4", "on data=2, tensor=3");
    assert!(verify(&parse(&uneven).unwrap(), Stage::Spmd).is_err());
}

//! Random small decoders as spec text: families of the published recipes, mixed. Every draw checks and trains.

use std::fmt::Write as _;

use crate::random_graph::Random;

/// A spec with the choices that tests must know.
#[derive(Clone, Debug)]
pub struct RandomSpec {
    /// What it is drawn from.
    pub seed: u64,
    /// The whole file.
    pub text: String,
    /// Sequences per update.
    pub batch: u64,
    /// A divisor of `batch`, smaller than it.
    pub microbatch: u64,
    /// Iterations of the layer loop.
    pub layers: u64,
}

impl RandomSpec {
    /// The same model without its repeat: the layers one by one, `layer0`, `layer1`, … instead of `layer.{i}`.
    ///
    /// # Panics
    /// The text has another form than [`random_spec`] gives it.
    pub fn written_out(&self) -> String {
        let declared = format!(", layers = {}\n", self.layers);
        let text = self.text.replacen(&declared, "\n", 1);
        let (before, rest) =
            text.split_once("    x = repeat[layers](Layer@layer, ").expect("there is a repeat");
        let (start, after) = rest.split_once(")\n").expect("the repeat ends its line");
        let mut lines = format!("    x0 = {start}\n");
        for layer in 0..self.layers {
            let result = if layer + 1 == self.layers { "x".to_string() } else { format!("x{}", layer + 1) };
            let _ = writeln!(lines, "    {result} = Layer@layer{layer}(x{layer})");
        }
        format!("{before}{lines}{after}")
    }
}

/// The spec of a seed. It trains in one piece (`microbatch = batch`) on synthetic tokens.
pub fn random_spec(seed: u64) -> RandomSpec {
    let mut r = Random::new(seed);
    let sizes = Sizes::draw(&mut r);
    let mut text = String::from("spec 1\nmodel Random {\n");
    sizes.declare(&mut text);
    text += "    input tokens: ids<vocab>[batch, seq]\n    input targets: ids<vocab>[batch, seq]\n";
    text += norm(&mut r);
    text += &attention(&mut r, &sizes);
    text += feed_forward(&mut r);
    text += layer(&mut r);
    body(&mut r, &mut text);
    text += "}\n";
    let (batch, microbatch) = *r.pick(&[(4, 1), (4, 2), (6, 2), (6, 3), (2, 1)]);
    run(&mut r, &mut text, batch);
    RandomSpec { seed, text, batch, microbatch, layers: sizes.layers }
}

fn choice(r: &mut Random, texts: &[&'static str]) -> &'static str {
    texts[r.below(texts.len())]
}

/// How heads are laid out.
#[derive(Clone, Copy, PartialEq)]
enum Heads {
    /// `kv` heads, each with `group` query heads.
    Grouped,
    /// `kv` heads of queries, keys and values alike.
    Plain,
}

struct Sizes {
    layers: u64,
    heads: Heads,
    kv: u64,
    hd: u64,
}

impl Sizes {
    fn draw(r: &mut Random) -> Sizes {
        Sizes {
            layers: 1 + r.below(3) as u64,
            heads: *r.pick(&[Heads::Grouped, Heads::Plain]),
            kv: 1 + r.below(2) as u64,
            hd: *r.pick(&[2, 4, 6]),
        }
    }

    fn declare(&self, text: &mut String) {
        let group = if self.heads == Heads::Grouped { ", group = 2" } else { "" };
        let _ = writeln!(text, "    size vocab = 13, d = 6, ff = 10, layers = {}", self.layers);
        let _ = writeln!(text, "    size kv = {}{group}, hd = {}", self.kv, self.hd);
        text.push_str("    size batch = run, seq = run\n    const std = 0.3\n");
    }
}

fn norm(r: &mut Random) -> &'static str {
    choice(
        r,
        &[
            "    block Norm[a](x[.., a]) -> [.., a] {
        param w[a] = ones
        x * rsqrt(mean[a](x * x) + 1e-5) * w
    }
",
            "    block Norm[a](x[.., a]) -> [.., a] {
        param w[a] = ones
        rms_norm[a](x, w, eps = 1e-6)
    }
",
            "    block Norm[a](x[.., a]) -> [.., a] {
        param w[a] = ones
        param b[a] = zeros
        layer_norm[a](x, w, b)
    }
",
            "    block Norm[a](x[.., a]) -> [.., a] {
        param w[a] = ones
        c = x - mean[a](x)
        c / sqrt(mean[a](c * c) + 1e-5) * w
    }
",
        ],
    )
}

fn attention(r: &mut Random, sizes: &Sizes) -> String {
    let group = if sizes.heads == Heads::Grouped { "group, " } else { "" };
    let mut text = String::from("    block Attention(x[batch, seq, d]) -> [batch, seq, d] {\n");
    let _ = writeln!(
        text,
        "        param wq[d -> kv, {group}hd], wk[d -> kv, hd], wv[d -> kv, hd] = normal(std)"
    );
    let _ = writeln!(text, "        param wo[kv, {group}hd -> d] = normal(std)");
    let biased = r.below(3) == 0;
    if biased {
        let _ = writeln!(text, "        param bq[kv, {group}hd], bk[kv, hd], bv[kv, hd] = normal(std)");
    }
    let plus = |name: &str| if biased { format!(" + {name}") } else { String::new() };
    let rope = choice(r, &["", "half", "interleaved"]);
    let turned = |x: String| match rope {
        "" => x,
        pairs => format!("rope[hd]({x}, at = index[seq], 1e4, pairs = {pairs})"),
    };
    let _ = writeln!(text, "        q = {}", turned(format!("dot[d](x, wq){}", plus("bq"))));
    let _ = writeln!(text, "        k = {} as [seq: pos]", turned(format!("(dot[d](x, wk){})", plus("bk"))));
    let _ = writeln!(text, "        v = (dot[d](x, wv){}) as [seq: pos]", plus("bv"));
    match r.below(3) {
        0 => text += "        o = std.Attend[seq, pos, hd](q, k, v, causal = true)\n",
        1 => text += "        o = std.Attend[seq, pos, hd](q, k, v, causal = true, soft_cap = 5.0)\n",
        _ => {
            text += "        mask[seq, pos] = index[pos] <= index[seq]\n";
            text += "        o = dot[pos](softmax[pos](where(mask, dot[hd](q, k) / sqrt(hd), -inf)), v)\n";
        }
    }
    let _ = writeln!(text, "        dot[kv, {group}hd](o, wo)\n    }}");
    text
}

fn feed_forward(r: &mut Random) -> &'static str {
    choice(
        r,
        &[
            "    block FeedForward(x[.., d]) -> [.., d] {
        param gate[d -> ff], up[d -> ff], down[ff -> d] = normal(std)
        dot[ff](silu(dot[d](x, gate)) * dot[d](x, up), down)
    }
",
            "    block FeedForward(x[.., d]) -> [.., d] {
        param up[d -> ff], b1[ff], down[ff -> d], b2[d] = normal(std)
        dot[ff](gelu(dot[d](x, up) + b1), down) + b2
    }
",
            "    block FeedForward(x[.., d]) -> [.., d] {
        param gate[d -> ff], up[d -> ff], down[ff -> d] = normal(std)
        dot[ff](gelu(dot[d](x, gate)) * dot[d](x, up), down)
    }
",
            "    block FeedForward(x[.., d]) -> [.., d] {
        param up[d -> ff], down[ff -> d] = normal(std)
        h = tanh(dot[d](x, up))
        dot[ff](h * h, down)
    }
",
        ],
    )
}

fn layer(r: &mut Random) -> &'static str {
    choice(
        r,
        &[
            "    block Layer(x[batch, seq, d]) -> [batch, seq, d] {
        h = x + Attention@attn(Norm[d]@norm1(x)) role residual
        h + FeedForward@mlp(Norm[d]@norm2(h)) role residual
    }
",
            "    block Layer(x[batch, seq, d]) -> [batch, seq, d] {
        h = x + dropout(Attention@attn(Norm[d]@norm1(x)), 0.1)
        h + dropout(FeedForward@mlp(Norm[d]@norm2(h)), 0.3)
    }
",
            "    block Layer(x[batch, seq, d]) -> [batch, seq, d] {
        n = Norm[d]@norm(x)
        x + Attention@attn(n) + FeedForward@mlp(n)
    }
",
            "    block Layer(x[batch, seq, d]) -> [batch, seq, d] {
        h = Norm[d]@norm1(x + Attention@attn(x))
        Norm[d]@norm2(h + FeedForward@mlp(h))
    }
",
        ],
    )
}

fn body(r: &mut Random, text: &mut String) {
    let tied = r.below(2) == 0;
    let positions = r.below(2) == 0;
    text.push_str("    param embed[vocab, d] = normal(std)\n");
    if positions {
        text.push_str("    param place[seq, d] = normal(std)\n");
    }
    if !tied {
        text.push_str("    param head[d -> vocab] = normal(std)\n");
    }
    let start =
        if positions { "gather[vocab](embed, tokens) + place" } else { "gather[vocab](embed, tokens)" };
    let start = if r.below(3) == 0 { format!("dropout({start}, rate = 0.2)") } else { start.to_string() };
    let _ = writeln!(text, "    x = repeat[layers](Layer@layer, {start})");
    let head = if tied { "embed" } else { "head" };
    let _ = writeln!(text, "    logits[batch, seq, vocab] = dot[d](Norm[d]@norm(x), {head})");
    text.push_str(choice(
        r,
        &[
            "    loss mean[batch, seq](cross_entropy[vocab](logits, targets))\n",
            "    loss mean[batch, seq](cross_entropy[vocab](tanh(logits / 4) * 4, targets))\n",
        ],
    ));
}

fn run(r: &mut Random, text: &mut String, batch: u64) {
    let _ = writeln!(
        text,
        "train {{\n    steps = 6, batch = {batch} sequences, seq = {}, seed = 3",
        3 + r.below(4)
    );
    text.push_str("    data = synthetic\n");
    let clip = *r.pick(&["", ", clip = 0.5"]);
    let _ = match r.below(6) {
        0 => writeln!(text, "    optimizer = sgd {{ lr = 0.1, momentum = 0.9{clip} }}"),
        1 => writeln!(
            text,
            "    optimizer = sgd {{ lr = 0.1, momentum = 0.9, nesterov = true, decay = 0.1{clip} }}"
        ),
        2 => writeln!(text, "    optimizer = lion {{ lr = 1e-2, decay = 0.1, decay_by = schedule{clip} }}"),
        3 => writeln!(text, "    optimizer = adafactor {{ lr = 1e-2, decay = 0.1, beta1 = 0.9{clip} }}"),
        4 => writeln!(text, "    optimizer = muon {{ lr = 1e-2{clip}, params \"**\" {{ decay = 0.1 }} }}"),
        _ => writeln!(
            text,
            "    optimizer = adamw {{ lr = 1e-2, decay = 0.1{clip}, params \"**.norm*.w\" {{ decay = 0 }} }}"
        ),
    };
    text.push_str(choice(
        r,
        &["", "    schedule = warmup(2) then cosine(to = 1e-3)\n", "    schedule = linear(to = 0)\n"],
    ));
    text.push_str("}\n");
}

// Feed-forward with squared rectifier in place of the block's own kernels. One tile a sequence.
// tiles: ${batch}
// check: Own.d = 8, Own.ff = 12, train.batch = 2, train.seq = 5

func.func @forward(%x: memref<${batch}x${seq}x${d}xf32>, %up: memref<${d}x${ff}xf32>, %down: memref<${ff}x${d}xf32>,
                   %h: memref<${batch}x${seq}x${ff}xf32>, %out: memref<${batch}x${seq}x${d}xf32>,
                   %begin: index, %end: index) {
  %zero = arith.constant 0.0 : f32
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %seq = arith.constant ${seq} : index
  %d = arith.constant ${d} : index
  %ff = arith.constant ${ff} : index
  scf.for %b = %begin to %end step %c1 {
    scf.for %s = %c0 to %seq step %c1 {
      scf.for %f = %c0 to %ff step %c1 {
        %sum = scf.for %i = %c0 to %d step %c1 iter_args(%acc = %zero) -> f32 {
          %a = memref.load %x[%b, %s, %i] : memref<${batch}x${seq}x${d}xf32>
          %w = memref.load %up[%i, %f] : memref<${d}x${ff}xf32>
          %p = math.fma %a, %w, %acc : f32
          scf.yield %p : f32
        }
        %r = arith.maximumf %sum, %zero : f32
        memref.store %r, %h[%b, %s, %f] : memref<${batch}x${seq}x${ff}xf32>
      }
      scf.for %i = %c0 to %d step %c1 {
        %sum = scf.for %f = %c0 to %ff step %c1 iter_args(%acc = %zero) -> f32 {
          %r = memref.load %h[%b, %s, %f] : memref<${batch}x${seq}x${ff}xf32>
          %q = arith.mulf %r, %r : f32
          %w = memref.load %down[%f, %i] : memref<${ff}x${d}xf32>
          %p = math.fma %q, %w, %acc : f32
          scf.yield %p : f32
        }
        memref.store %sum, %out[%b, %s, %i] : memref<${batch}x${seq}x${d}xf32>
      }
    }
  }
  return
}

func.func @backward(%x: memref<${batch}x${seq}x${d}xf32>, %up: memref<${d}x${ff}xf32>, %down: memref<${ff}x${d}xf32>,
                    %h: memref<${batch}x${seq}x${ff}xf32>, %d_out: memref<${batch}x${seq}x${d}xf32>,
                    %d_x: memref<${batch}x${seq}x${d}xf32>, %d_up: memref<${d}x${ff}xf32>,
                    %d_down: memref<${ff}x${d}xf32>) {
  %zero = arith.constant 0.0 : f32
  %two = arith.constant 2.0 : f32
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %batch = arith.constant ${batch} : index
  %seq = arith.constant ${seq} : index
  %d = arith.constant ${d} : index
  %ff = arith.constant ${ff} : index
  scf.for %i = %c0 to %d step %c1 {
    scf.for %f = %c0 to %ff step %c1 {
      memref.store %zero, %d_up[%i, %f] : memref<${d}x${ff}xf32>
      memref.store %zero, %d_down[%f, %i] : memref<${ff}x${d}xf32>
    }
  }
  scf.for %b = %c0 to %batch step %c1 {
    scf.for %s = %c0 to %seq step %c1 {
      scf.for %i = %c0 to %d step %c1 {
        memref.store %zero, %d_x[%b, %s, %i] : memref<${batch}x${seq}x${d}xf32>
      }
      scf.for %f = %c0 to %ff step %c1 {
        // h is max(x·up, 0): out = h²·down, so dh = 2·h·(d_out·downᵀ), which is 0 where h is.
        %r = memref.load %h[%b, %s, %f] : memref<${batch}x${seq}x${ff}xf32>
        %q = arith.mulf %r, %r : f32
        %back = scf.for %i = %c0 to %d step %c1 iter_args(%acc = %zero) -> f32 {
          %g = memref.load %d_out[%b, %s, %i] : memref<${batch}x${seq}x${d}xf32>
          %w = memref.load %down[%f, %i] : memref<${ff}x${d}xf32>
          %old = memref.load %d_down[%f, %i] : memref<${ff}x${d}xf32>
          %new = math.fma %q, %g, %old : f32
          memref.store %new, %d_down[%f, %i] : memref<${ff}x${d}xf32>
          %p = math.fma %g, %w, %acc : f32
          scf.yield %p : f32
        }
        %twice = arith.mulf %two, %r : f32
        %dh = arith.mulf %twice, %back : f32
        scf.for %i = %c0 to %d step %c1 {
          %a = memref.load %x[%b, %s, %i] : memref<${batch}x${seq}x${d}xf32>
          %w = memref.load %up[%i, %f] : memref<${d}x${ff}xf32>
          %old_up = memref.load %d_up[%i, %f] : memref<${d}x${ff}xf32>
          %new_up = math.fma %dh, %a, %old_up : f32
          memref.store %new_up, %d_up[%i, %f] : memref<${d}x${ff}xf32>
          %old_x = memref.load %d_x[%b, %s, %i] : memref<${batch}x${seq}x${d}xf32>
          %new_x = math.fma %dh, %w, %old_x : f32
          memref.store %new_x, %d_x[%b, %s, %i] : memref<${batch}x${seq}x${d}xf32>
        }
      }
    }
  }
  return
}

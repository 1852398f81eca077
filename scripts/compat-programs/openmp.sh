command -v gcc >/dev/null || exit 127
cat > o.c <<'P'
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
enum { N = 400000 };
static long fib(int n) { if (n < 2) return n; long a, b;
#pragma omp task shared(a) if (n > 18)
 a = fib(n - 1);
#pragma omp task shared(b) if (n > 18)
 b = fib(n - 2);
#pragma omp taskwait
 return a + b; }
int main(void) { static long u[N]; for (int k = 0; k < 250; k++) { 
#pragma omp parallel for schedule(dynamic, 1000)
 for (long i = 0; i < N; i++) u[i] = (u[i] * 31 + i * k) % 1000003;
 long s = 0;
#pragma omp parallel for reduction(+ : s) schedule(guided)
 for (long i = 0; i < N; i++) s += u[i];
 if (k % 25 == 0) { printf("%d %ld\n", k, s); fflush(stdout); } }
 long f;
#pragma omp parallel
#pragma omp single
 f = fib(30);
 printf("%ld\n", f); 
 for (int k = 0; k < 3000; k++) {
#pragma omp parallel
 { 
#pragma omp critical
  u[k]++;
#pragma omp barrier
 } }
 printf("%ld %d\n", u[2999], omp_get_max_threads()); }
P
gcc -O2 -fopenmp o.c -o o; echo $?; OMP_NUM_THREADS=8 ./o; echo $?

/* LU decomposition with partial pivoting, again and again. Usage: lu ROUNDS OUTPUT */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 160 };

static double a[N][N], b[N];

int main(int argc, char **argv)
{
    if (argc != 3)
        return 64;
    int rounds = atoi(argv[1]);
    FILE *out = fopen(argv[2], "w");
    if (!out)
        return 74;
    unsigned seed = 1;
    double shift = 0;
    for (int round = 1; round <= rounds; round++) {
        for (int i = 0; i < N; i++) {
            for (int j = 0; j < N; j++) {
                seed = seed * 1103515245u + 12345u;
                a[i][j] = (double)(seed >> 8) / (1 << 24) - 0.5;
            }
            b[i] = shift + i;
        }
        double determinant = 0;
        for (int k = 0; k < N; k++) {
            int pivot = k;
            for (int i = k + 1; i < N; i++)
                if (fabs(a[i][k]) > fabs(a[pivot][k]))
                    pivot = i;
            for (int j = 0; j < N; j++) {
                double t = a[k][j];
                a[k][j] = a[pivot][j];
                a[pivot][j] = t;
            }
            double t = b[k];
            b[k] = b[pivot];
            b[pivot] = t;
            determinant += log(fabs(a[k][k]));
            for (int i = k + 1; i < N; i++) {
                double f = a[i][k] / a[k][k];
                for (int j = k; j < N; j++)
                    a[i][j] -= f * a[k][j];
                b[i] -= f * b[k];
            }
        }
        for (int i = N - 1; i >= 0; i--) {
            for (int j = i + 1; j < N; j++)
                b[i] -= a[i][j] * b[j];
            b[i] /= a[i][i];
        }
        /* The next system depends on this solution. */
        shift = fmod(b[0], 1.0);
        fprintf(out, "%d %.17g %.17g %.17g\n", round, determinant, b[0], b[N - 1]);
        fflush(out);
    }
    return fclose(out) ? 74 : 0;
}

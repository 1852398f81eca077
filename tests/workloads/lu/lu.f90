! LU decomposition with partial pivoting, again and again. Usage: lu ROUNDS OUTPUT
program lu
  implicit none
  integer, parameter :: n = 160
  real(8) :: a(n, n), b(n), row(n), t, factor, determinant, shift
  integer(8) :: seed
  integer :: rounds, round, i, j, k, pivot
  character(len=256) :: argument

  call get_command_argument(1, argument)
  read (argument, *) rounds
  call get_command_argument(2, argument)
  open (unit=10, file=trim(argument), form='formatted', status='replace')
  seed = 1
  shift = 0.0d0
  do round = 1, rounds
    do j = 1, n
      do i = 1, n
        seed = mod(seed*1103515245_8 + 12345_8, 2147483648_8)
        a(i, j) = real(seed, 8)/2147483648.0d0 - 0.5d0
      end do
      b(j) = shift + j
    end do
    determinant = 0.0d0
    do k = 1, n
      pivot = k - 1 + maxloc(abs(a(k:n, k)), dim=1)
      row = a(k, :)
      a(k, :) = a(pivot, :)
      a(pivot, :) = row
      t = b(k)
      b(k) = b(pivot)
      b(pivot) = t
      determinant = determinant + log(abs(a(k, k)))
      a(k + 1:n, k) = a(k + 1:n, k)/a(k, k)
      do j = k + 1, n
        factor = a(k, j)
        a(k + 1:n, j) = a(k + 1:n, j) - factor*a(k + 1:n, k)
      end do
      b(k + 1:n) = b(k + 1:n) - b(k)*a(k + 1:n, k)
    end do
    do i = n, 1, -1
      b(i) = (b(i) - dot_product(a(i, i + 1:n), b(i + 1:n)))/a(i, i)
    end do
    ! The next system depends on this solution.
    shift = mod(b(1), 1.0d0)
    write (10, '(i6, 3es25.16)') round, determinant, b(1), b(n)
    flush (10)
  end do
  close (10)
end program lu
